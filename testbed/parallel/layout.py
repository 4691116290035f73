"""Which tokens of a sequence each rank holds.

A sequence is cut into chunks of equal length. `contiguous` gives rank i the i-th of N; under causal attention the
last rank then computes most. `zigzag` cuts into 2N and gives rank i the chunks i and 2N−1−i, so that every rank
sees the same number of keys (Llama 3, arXiv 2407.21783, section 3.3.2). Positions travel with tokens: whatever a
layout does, rotation and masks go by a token's place in the sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.config.arm import LayoutName
from testbed.errors import UsageError

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """A layout over `world` ranks."""

    name: LayoutName
    world: int

    @property
    def per_rank(self) -> int:
        """Chunks that each rank holds."""
        return 2 if self.name == "zigzag" else 1

    def check(self, context: int) -> None:
        """Raise `UsageError` unless a sequence of `context` tokens can be cut so."""
        chunks = self.per_rank * self.world
        if context % chunks:
            raise UsageError(
                f"a sequence of {context} tokens cannot be cut into the {chunks} equal chunks of a {self.name} "
                f"layout over {self.world} ranks; {context // chunks * chunks or chunks} can"
            )

    def chunks(self, rank: int) -> tuple[int, ...]:
        """Numbers of a rank's chunks, ascending."""
        return (rank, 2 * self.world - 1 - rank) if self.name == "zigzag" else (rank,)

    def owner(self, chunk: int) -> int:
        """The rank that holds a chunk."""
        return min(chunk, 2 * self.world - 1 - chunk) if self.name == "zigzag" else chunk

    def positions(self, rank: int, context: int) -> Tensor:
        """Places in the sequence of a rank's tokens, in the order in which it holds them: (T,)."""
        size = context // (self.per_rank * self.world)
        return torch.cat([torch.arange(chunk * size, (chunk + 1) * size) for chunk in self.chunks(rank)])
