"""`recent`: only the newest tokens of each chunk travel, exact. What a clever codec of the same bytes must beat.

If it does as well, the task never looked far back and says nothing about what the codec keeps.
"""

import math

import torch
from torch import Tensor

from testbed.codecs.base import Codec, Encoded, Shape, Wire

__all__ = ["Recent"]

_FRACTION = 9 / 256  # of exact K and V in bf16: the bytes of `best`


class Recent(Codec):
    """Sends 2·d_kv numbers for each of the last `fraction` of a chunk's tokens, and at least for one."""

    options = frozenset({"fraction"})

    def newest(self, tokens: int) -> int:
        """How many tokens of a chunk travel."""
        return max(1, math.floor(tokens * (self.config.fraction or _FRACTION)))

    def kept(self, shape: Shape) -> Tensor:
        return torch.arange(shape.tokens - self.newest(shape.tokens), shape.tokens)

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        wire = self.wire(shape.batch, self.newest(shape.tokens), self.kv_width)
        return wire, wire

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        newest = self.newest(key_BTE.shape[1])
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(key_BTE[:, -newest:], value_BTE[:, -newest:]))

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        key_BTE, value_BTE = parts
        return key_BTE, value_BTE
