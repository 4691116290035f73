"""The recall mix: real text with facts planted in it that are asked for later, often on another node.

Plain text proves nothing about an exchange between nodes: a model that never reads another node's chunk
reaches nearly the same loss. So one-token facts F(key, value) are strewn into the text, and queries Q(key)
whose answer is the fact itself. Whoever cannot read the chunk in which the fact stood can only guess one of
the values (of eight: accuracy 0.125).

Token ids: first the text's (bytes: 0-255), then queries Q(key), then facts F(key, value), key by key. With bytes and
16 × 8 facts: 256-271 queries, 272-399 facts = 272 + 8·key + value.
"""

import numpy as np

from testbed.data.batch import Batch, Row, Split, Stream, digest_of, stack

__all__ = ["VOCABULARY", "Batch", "RecallMix"]

KEYS, VALUES = 16, 8
FIRST_QUERY = 256
FIRST_FACT = FIRST_QUERY + KEYS
VOCABULARY = FIRST_FACT + KEYS * VALUES
"""Of bytes and 16 × 8 facts."""

SHARE = 0.3
"""The probability that a position starts an event instead of carrying text."""
_PLANT = 0.6  # ... that an event plants a new fact while the chunk may still have some
_REMOTE = 0.7  # ... that a query takes a key whose fact last stood in an earlier chunk


class RecallMix:
    """Batches as a function of (seed, split, step) and of nothing else."""

    def __init__(
        self,
        train: np.ndarray | Stream,
        validation: np.ndarray | Stream,
        *,
        seed: int,
        chunks: int = 4,
        keys: int = KEYS,
        values: int = VALUES,
        share: float = SHARE,
        first_query: int = FIRST_QUERY,
        sha256: str = "",
    ) -> None:
        """`first_query`: the text's number of token ids. Bare arrays of tokens are one document each."""
        self._text: dict[Split, Stream] = {"train": _stream(train), "validation": _stream(validation)}
        self._seed, self._chunks = seed, chunks
        self._keys, self._values, self._share = keys, values, share
        self._facts_per_chunk = -(-keys // 3)
        self.first_query, self.first_fact = first_query, first_query + keys
        self.vocabulary = self.first_fact + keys * values
        self.sha256 = sha256 or digest_of(*(stream.tokens.tobytes() for stream in self._text.values()))

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:
        """The batch of `step`: `sequences` × `context` tokens. `split`: "train" or "validation".

        Validation batches do not depend on the seed: all runs are judged by the same sequences.
        """
        return stack(self._sequence, self._seed, split, step, sequences, context)

    def _sequence(self, rng: np.random.Generator, split: Split, length: int) -> Row:
        tokens, documents = self._text[split].draw(rng, length)
        counted = np.ones(length, dtype=bool)
        evidence = np.full(length, -1, dtype=np.int64)
        per_chunk = max(1, (length - 1) // self._chunks)
        facts: dict[int, tuple[int, int]] = {}  # key -> (fact token, newest position)
        unused = [int(key) for key in rng.permutation(self._keys)]
        draws = rng.random((length, 4))
        free = 0  # the first position that no event has taken
        for position in np.flatnonzero(draws[: length - 1, 0] < self._share).tolist():
            if position < free:
                continue
            _, plant, remote, pick = draws[position]
            chunk = min(position // per_chunk, self._chunks - 1)
            planted = self._keys - len(unused)
            if unused and planted < (chunk + 1) * self._facts_per_chunk and plant < _PLANT:
                key = unused.pop()
                fact = self.first_fact + self._values * key + int(pick * self._values)
                facts[key] = (fact, position)
                tokens[position], counted[position] = fact, False
            elif facts:
                key = _asked(facts, chunk * per_chunk, remote < _REMOTE, pick)
                fact, last = facts[key]
                tokens[position : position + 2] = self.first_query + key, fact
                counted[position] = False
                evidence[position + 1] = last
                facts[key] = (fact, position + 1)
                free = position + 2
        return Row(tokens=tokens, counted=counted, evidence=evidence, documents=documents)


def _asked(facts: dict[int, tuple[int, int]], chunk_start: int, remote: bool, pick: float) -> int:
    """A known key of the wished kind, or of the other kind where there is none."""
    wished = [key for key, (_, last) in facts.items() if (last < chunk_start) == remote]
    keys = wished or list(facts)
    return keys[int(pick * len(keys))]


def _stream(text: np.ndarray | Stream) -> Stream:
    return text if isinstance(text, Stream) else Stream(tokens=text, starts=np.zeros(1, dtype=np.uint64))
