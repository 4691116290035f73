"""MQAR, multi-query associative recall: key-value pairs first, then queries for them anywhere behind.

S. Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models", 2023, arXiv 2312.04927,
section 3 and appendix C. A fact is two tokens here, so a model needs two layers to look one up: one to tie a value to
the key before it, one to find the key again. What differs from the paper, so that guessing is right once in `values`
times and no more: values are drawn independently of one another. A sequence may hold more queries than pairs, each for
a key drawn at random; the paper asks for each key once. Between queries stands a blank.

Token ids: 0 blank, then keys, then values. Only answers count. An answer's evidence is where its value last stood, so
that "remote" means that no node but another one has it.
"""

import numpy as np

from testbed.data.batch import Batch, Row, Split, digest_of, stack

__all__ = ["BLANK", "MQAR"]

BLANK = 0


class MQAR:
    """Batches as a function of (seed, split, step) and of nothing else."""

    def __init__(self, *, seed: int, keys: int, values: int, pairs: int, queries: int = 0, gap_power: float = 1.0):
        self._seed = seed
        self._keys, self._values, self._pairs = keys, values, pairs
        self._queries, self._gap_power = queries, gap_power
        self.first_value = 1 + keys
        self.vocabulary = 1 + keys + values
        self.sha256 = digest_of(f"mqar {keys} {values} {pairs} {queries} {gap_power}".encode())
        """Digest of the settings: this source reads no text."""

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:
        """`sequences` × `context` tokens."""
        return stack(self._sequence, self._seed, split, step, sequences, context)

    def _sequence(self, rng: np.random.Generator, _: Split, length: int) -> Row:
        pairs = max(1, min(self._pairs, length // 4))
        tokens = np.full(length, BLANK, dtype=np.int64)
        evidence = np.full(length, -1, dtype=np.int64)
        keys = 1 + rng.permutation(self._keys)[:pairs]
        values = self.first_value + rng.integers(self._values, size=pairs)
        tokens[: 2 * pairs] = np.stack([keys, values], axis=1).reshape(-1)
        newest = 1 + 2 * np.arange(pairs)
        places = self._places(rng, 2 * pairs, length)
        for position, pair in zip(places, self._asked(rng, pairs, len(places)), strict=True):
            tokens[position : position + 2] = keys[pair], values[pair]
            evidence[position + 1] = newest[pair]
            newest[pair] = position + 1
        return Row(tokens=tokens, counted=evidence >= 0, evidence=evidence, documents=np.zeros(length, dtype=np.int32))

    def _places(self, rng: np.random.Generator, begin: int, length: int) -> np.ndarray:
        """Where queries stand, ascending: slots of two tokens, drawn with the density of a power law, none twice."""
        slots = (length - begin) // 2
        wanted = min(self._queries or slots, slots)
        weights = np.arange(1, slots + 1) ** (self._gap_power - 1)
        return begin + 2 * np.sort(rng.choice(slots, size=wanted, replace=False, p=weights / weights.sum()))

    @staticmethod
    def _asked(rng: np.random.Generator, pairs: int, queries: int) -> np.ndarray:
        """Which pair each query is for: every pair once before any is asked for again."""
        rounds = [rng.permutation(pairs) for _ in range(-(-queries // pairs))]
        return np.concatenate(rounds)[:queries] if rounds else np.zeros(0, dtype=np.int64)
