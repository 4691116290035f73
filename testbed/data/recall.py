"""The recall mix: real text with facts planted in it that are asked for later, often on another node.

Plain text proves nothing about an exchange between nodes: a model that never reads another node's chunk
reaches nearly the same loss. So one-token facts F(key, value) are strewn into the text, and queries Q(key)
whose answer is the fact itself. Whoever cannot read the chunk in which the fact stood can only guess one of
the eight values (accuracy 0.125).

Token ids: 0-255 bytes, 256-271 queries Q(key), 272-399 facts F(key, value) = 272 + 8·key + value.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["VOCABULARY", "Batch", "RecallMix"]

KEYS, VALUES = 16, 8
FIRST_QUERY = 256
FIRST_FACT = FIRST_QUERY + KEYS
VOCABULARY = FIRST_FACT + KEYS * VALUES

_EVENT = 0.3  # probability that a position starts an event instead of carrying text
_PLANT = 0.6  # ... that an event plants a new fact while the chunk may still have some
_REMOTE = 0.7  # ... that a query takes a key whose fact last stood in an earlier chunk
_FACTS_PER_CHUNK = -(-KEYS // 3)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences whose labels are already shifted, so that any cut of them into chunks is right."""

    tokens: np.ndarray
    """(B, T) int64."""
    labels: np.ndarray
    """(B, T) int64: the token after each."""
    counted: np.ndarray
    """(B, T) bool: labels that can be predicted (text and answers; planted facts and queries cannot)."""
    evidence: np.ndarray
    """(B, T) int64: for an answer, where its fact last stood; -1 for everything else."""


class RecallMix:
    """Batches as a function of (seed, split, step) and of nothing else."""

    def __init__(self, train: np.ndarray, validation: np.ndarray, *, seed: int, chunks: int = 4) -> None:
        self._text = {"train": train, "validation": validation}
        self._seed = seed
        self._chunks = chunks

    def batch(self, split: str, step: int, sequences: int, context: int) -> Batch:
        """The batch of `step`: `sequences` × `context` tokens. `split`: "train" or "validation".

        Validation batches do not depend on the seed: all runs are judged by the same sequences.
        """
        seed = self._seed if split == "train" else 0
        stream = (0 if split == "train" else 1, context)
        rows = [
            self._sequence(np.random.default_rng([seed, *stream, step, row]), split, context + 1)
            for row in range(sequences)
        ]
        tokens, counted, evidence = (np.stack(column) for column in zip(*rows, strict=True))
        return Batch(tokens=tokens[:, :-1], labels=tokens[:, 1:], counted=counted[:, 1:], evidence=evidence[:, 1:])

    def _sequence(self, rng: np.random.Generator, split: str, length: int) -> tuple[np.ndarray, ...]:
        text = self._text[split]
        start = int(rng.integers(len(text) - length))
        tokens = text[start : start + length].astype(np.int64)
        counted = np.ones(length, dtype=bool)
        evidence = np.full(length, -1, dtype=np.int64)
        per_chunk = max(1, (length - 1) // self._chunks)
        facts: dict[int, tuple[int, int]] = {}  # key -> (fact token, newest position)
        unused = [int(key) for key in rng.permutation(KEYS)]
        draws = rng.random((length, 4))
        position = 0
        while position < length - 1:
            event, plant, remote, pick = draws[position]
            if event >= _EVENT:
                position += 1
                continue
            chunk = min(position // per_chunk, self._chunks - 1)
            if unused and KEYS - len(unused) < (chunk + 1) * _FACTS_PER_CHUNK and plant < _PLANT:
                key = unused.pop()
                fact = FIRST_FACT + VALUES * key + int(pick * VALUES)
                facts[key] = (fact, position)
                tokens[position], counted[position] = fact, False
                position += 1
            elif facts:
                key = self._asked(facts, chunk * per_chunk, remote < _REMOTE, pick)
                fact, last = facts[key]
                tokens[position : position + 2] = FIRST_QUERY + key, fact
                counted[position] = False
                evidence[position + 1] = last
                facts[key] = (fact, position + 1)
                position += 2
            else:
                position += 1
        return tokens, counted, evidence

    @staticmethod
    def _asked(facts: dict[int, tuple[int, int]], chunk_start: int, remote: bool, pick: float) -> int:
        """A known key of the wished kind, or of the other kind where there is none."""
        wished = [key for key, (_, last) in facts.items() if (last < chunk_start) == remote]
        keys = wished or list(facts)
        return keys[int(pick * len(keys))]
