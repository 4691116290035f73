"""One learned low-rank latent for K and V together.

c = [K, V] D travels, r numbers per token; receivers use [K̂, V̂] = c U. D (2·d_kv × r) and U (r × 2·d_kv) are
trained. They start from the principal directions of warm-started activations, so that D U is at first the best
rank-r projection of them. Principal coefficients differ in size by orders of magnitude, which four bits under
one scale cannot hold, so the basis is rotated within its span by an orthogonal Hadamard matrix (or a random one
where r is no power of two): the span is the same, the sizes even.

The idea is the joint latent of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1.2), used
between nodes only: the own chunk stays exact unless `own_chunk = "projected"`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from testbed.codecs.base import Codec, Encoded, Scale, Shape, Wire
from testbed.codecs.bases import mixing, principal
from testbed.config import CodecConfig

__all__ = ["Latent"]


class Latent(Codec):
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
        self.down = nn.Parameter(torch.zeros(2 * kv_width, self.rank))
        self.up = nn.Parameter(torch.zeros(self.rank, 2 * kv_width))

    @torch.no_grad()
    def start(self, key: nn.Linear, value: nn.Linear, kv_NF: Tensor) -> None:  # noqa: ARG002
        directions = principal(kv_NF, self.rank)
        basis = directions @ mixing(self.rank, self.seed).to(directions)
        self.down.copy_(basis)
        self.up.copy_(basis.T)

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        return (self.wire(shape.batch, shape.tokens, self.rank),)

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        parts = (torch.cat((key_BTE, value_BTE), dim=-1) @ self.down,)
        if self.own_chunk == "projected":
            key_BTE, value_BTE = self.decode(parts, self.decoder_parameters())
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=parts)

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        (latent_BTR,), (up_RF,) = parts, decoder
        key_BTE, value_BTE = (latent_BTR @ up_RF).chunk(2, dim=-1)
        return key_BTE, value_BTE

    def decoder_parameters(self) -> tuple[Tensor, ...]:
        return (self.up,)

    def encode_flops(self, tokens: int) -> float:
        return 2.0 * tokens * 2 * self.kv_width * self.rank

    def decode_flops(self, tokens: int) -> float:
        return self.encode_flops(tokens)
