"""What every source hands to the trainer, and the stream of documents that text is cut from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from testbed.errors import UsageError

__all__ = ["Batch", "Row", "Split", "Stream", "generator", "stack"]

Split = Literal["train", "validation"]


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
    documents: np.ndarray
    """(B, T) int32: which document of its row each input token belongs to, 0, 1, … in order of position. The label of
    a document's last token is the next one's first, and counts; a document mask is for the trainer to apply."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sequence, with one token more than a batch shows: the last label."""

    tokens: np.ndarray
    counted: np.ndarray
    evidence: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Documents one behind the other."""

    tokens: np.ndarray
    """(tokens,) of any unsigned type."""
    starts: np.ndarray
    """(documents,) where each begins, ascending; the first begins at 0."""

    def cut(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """`length` tokens from `start` on (int64), and the number of the document of each, counted from 0 (int32)."""
        ends = np.array([start, start + length - 1], dtype=self.starts.dtype)  # of another, all starts are converted
        first, last = np.searchsorted(self.starts, ends, side="right")
        documents = np.zeros(length, dtype=np.int32)
        documents[np.asarray(self.starts[first:last], dtype=np.int64) - start] = 1  # empty documents have no number
        return self.tokens[start : start + length].astype(np.int64), np.cumsum(documents, dtype=np.int32)

    def draw(self, rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
        """A cut of this length from anywhere."""
        if len(self.tokens) <= length:
            raise UsageError(
                f"the corpus holds {len(self.tokens)} tokens of a split, too few for a sequence of {length}: "
                "take a larger corpus or a shorter context"
            )
        return self.cut(int(rng.integers(len(self.tokens) - length)), length)


def generator(seed: int, split: Split, step: int, row: int, context: int) -> np.random.Generator:
    """Randomness as a function of these and nothing else; validation is the same whatever the seed."""
    own = (seed, 0) if split == "train" else (0, 1)
    return np.random.default_rng([*own, context, step, row])


def stack(
    sequence: Callable[[np.random.Generator, Split, int], Row],
    seed: int,
    split: Split,
    step: int,
    sequences: int,
    context: int,
) -> Batch:
    """The batch of `step`: rows that do not depend on one another, labels one ahead of tokens."""
    rows = [sequence(generator(seed, split, step, row, context), split, context + 1) for row in range(sequences)]
    tokens = np.stack([row.tokens for row in rows])
    return Batch(
        tokens=tokens[:, :-1],
        labels=tokens[:, 1:],
        counted=np.stack([row.counted for row in rows])[:, 1:],
        evidence=np.stack([row.evidence for row in rows])[:, 1:],
        documents=np.stack([row.documents for row in rows])[:, :-1],
    )


def digest_of(*parts: bytes) -> str:
    """SHA-256 over the digests of parts."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
