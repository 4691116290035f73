"""Text alone: cuts of the stream of documents, every label counted. It says little about an exchange (recall.py)."""

import numpy as np

from testbed.data.batch import Batch, Row, Split, Stream, stack

__all__ = ["Text"]


class Text:
    """Batches as a function of (seed, split, step) and of nothing else."""

    def __init__(self, streams: dict[Split, Stream], *, seed: int, sha256: str, vocabulary: int) -> None:
        self._streams, self._seed = streams, seed
        self.sha256, self.vocabulary = sha256, vocabulary

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:
        """`sequences` × `context` tokens."""
        return stack(self._sequence, self._seed, split, step, sequences, context)

    def _sequence(self, rng: np.random.Generator, split: Split, length: int) -> Row:
        tokens, documents = self._streams[split].draw(rng, length)
        return Row(
            tokens=tokens,
            counted=np.ones(length, dtype=bool),
            evidence=np.full(length, -1, dtype=np.int64),
            documents=documents,
        )
