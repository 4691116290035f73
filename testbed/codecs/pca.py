"""`pca`: each chunk's own principal directions, sent along with it.

For X = [K, V] of one chunk of one sequence (T × 2·d_kv), V̂ are its r leading right singular directions, found by
two rounds of subspace iteration V ← qr(Xᵀ X V) (Halko et al. 2011, arXiv 0909.4061, algorithm 4.4) from the
warm-started activations' directions. X V̂ (r numbers per token) and V̂ in bf16 travel; receivers use (X V̂) V̂ᵀ.

V̂ is a choice, not a function to learn through: it has no gradient, and nothing of it travels back. No basis of
rank r fits a chunk better, so this bounds what any rotation of a fixed basis can reach. It sees the whole chunk,
its end included: only later chunks may use it, and the own chunk stays exact.
"""

from typing import Any

import torch
from torch import Tensor, nn

from testbed.codecs.base import Codec, Encoded, Scale, Shape, Wire
from testbed.codecs.bases import orthonormal, principal
from testbed.codecs.wire import wire_format
from testbed.config import CodecConfig

__all__ = ["PCA"]

_ROUNDS = 2


class PCA(Codec):
    """Sends r numbers per token, and 2·d_kv · r of the basis per chunk and sequence."""

    options = frozenset({"ranks"})

    @classmethod
    def ranks_for(cls, scale: Scale) -> tuple[int, ...] | None:
        return (sum(scale.subspace_ranks),)

    def __init__(self, config: CodecConfig, kv_width: int, **place: Any) -> None:
        super().__init__(config, kv_width, **place)
        (self.rank,) = self.ranks(2 * kv_width)
        self.register_buffer("guess", torch.zeros(2 * kv_width, self.rank))
        self.basis_format = wire_format("fp64" if config.wire == "fp64" else "bf16", config.group)

    @torch.no_grad()
    def start(self, key: nn.Linear, value: nn.Linear, kv_NF: Tensor) -> None:  # noqa: ARG002
        self.guess.copy_(principal(kv_NF, self.rank))

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        basis = (shape.batch, 2 * self.kv_width, self.rank)
        return (
            self.wire(shape.batch, shape.tokens, self.rank),
            Wire(shape=basis, format=self.basis_format, returned=False),
        )

    @torch.no_grad()
    def basis(self, kv_BTF: Tensor) -> Tensor:
        """V̂ (B, F, R) as receivers will have it, rounded."""
        basis, x_BTF = self.guess, kv_BTF.to(self.guess.dtype)
        for _ in range(_ROUNDS):
            basis = orthonormal(x_BTF.transpose(1, 2) @ (x_BTF @ basis))
        shape = tuple(basis.shape)
        return self.basis_format.unpack(self.basis_format.pack(basis), shape).to(kv_BTF)

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        kv_BTF = torch.cat((key_BTE, value_BTE), dim=-1)
        basis_BFR = self.basis(kv_BTF.detach())
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(kv_BTF @ basis_BFR, basis_BFR))

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        c_BTR, basis_BFR = parts
        key_BTE, value_BTE = (c_BTR @ basis_BFR.transpose(1, 2)).chunk(2, dim=-1)
        return key_BTE, value_BTE

    def encode_flops(self, tokens: int) -> float:
        """Two products a round and one at the end; the QR of a thin matrix, 4·F·r², once a round and chunk."""
        width = 2 * self.kv_width
        return 2.0 * tokens * width * self.rank * (2 * _ROUNDS + 1) + _ROUNDS * 4.0 * width * self.rank**2

    def decode_flops(self, tokens: int) -> float:
        return 2.0 * tokens * 2 * self.kv_width * self.rank
