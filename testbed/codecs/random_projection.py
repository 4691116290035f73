"""`random`: K and V seen through a fixed random subspace. What a learned projection of the same bytes must beat.

c = [K, V] P travels, r numbers per token; receivers use [K̂, V̂] = c Pᵀ. P (2·d_kv × r) has orthonormal columns
drawn from the seed and is never trained.
"""

from typing import Any

import torch
from torch import Tensor, nn

from testbed.codecs.base import Codec, Encoded, Scale, Shape, Wire
from testbed.codecs.bases import random_orthonormal
from testbed.config import CodecConfig

__all__ = ["RandomProjection"]


class RandomProjection(Codec):
    """Sends r numbers per token."""

    token_wise = True
    options = frozenset({"ranks"})
    own_chunks = ("exact", "projected")

    @classmethod
    def ranks_for(cls, scale: Scale) -> tuple[int, ...] | None:
        return (scale.latent_rank,)

    def __init__(self, config: CodecConfig, kv_width: int, **place: Any) -> None:
        super().__init__(config, kv_width, **place)
        (self.rank,) = self.ranks(2 * kv_width)
        self.register_buffer("basis", torch.zeros(2 * kv_width, self.rank))

    @torch.no_grad()
    def start(self, key: nn.Linear, value: nn.Linear, kv_NF: Tensor) -> None:  # noqa: ARG002
        self.basis.copy_(random_orthonormal(2 * self.kv_width, self.rank, self.own_seed()))

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        return (self.wire(shape.batch, shape.tokens, self.rank),)

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        parts = (torch.cat((key_BTE, value_BTE), dim=-1) @ self.basis,)
        if self.own_chunk == "projected":
            key_BTE, value_BTE = self.decode(parts, ())
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=parts)

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        (c_BTR,) = parts
        key_BTE, value_BTE = (c_BTR @ self.basis.T).chunk(2, dim=-1)
        return key_BTE, value_BTE

    def encode_flops(self, tokens: int) -> float:
        return 2.0 * tokens * 2 * self.kv_width * self.rank

    def decode_flops(self, tokens: int) -> float:
        return self.encode_flops(tokens)
