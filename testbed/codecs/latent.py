"""One learned low-rank latent for K and V together; the own chunk stays exact.

c = [K, V] D travels, r numbers per token in packed integers; receivers use [K̂, V̂] = c U. D (2·d_kv × r) and
U (r × 2·d_kv) are trained. They start from the principal directions of warm-started activations, so that
D U is at first the best rank-r projection of them. Principal coefficients differ in size by orders of
magnitude, which four bits under one scale cannot hold, so the basis is rotated within its span by an
orthogonal Hadamard matrix (or a random one where r is no power of two): the span is the same, the sizes even.
"""

import torch
from torch import Tensor, nn

from testbed.codecs.base import Codec, Encoded, Shape, Wire
from testbed.codecs.wire import wire_format
from testbed.config import CodecConfig
from testbed.errors import UsageError

__all__ = ["Latent"]


class Latent(Codec):
    """Sends `rank` numbers per token; compresses only what others see."""

    def __init__(self, config: CodecConfig, kv_width: int, *, layer: int, seed: int) -> None:
        super().__init__(config, kv_width, layer=layer, seed=seed)
        if len(config.ranks) != 1 or not 0 < config.ranks[0] <= 2 * kv_width:
            raise UsageError(f"latent takes one rank between 1 and {2 * kv_width}, given {config.ranks}")
        (self.rank,) = config.ranks
        self.down = nn.Parameter(torch.zeros(2 * kv_width, self.rank))
        self.up = nn.Parameter(torch.zeros(self.rank, 2 * kv_width))

    @torch.no_grad()
    def start(self, key: nn.Linear, value: nn.Linear, kv_NF: Tensor) -> None:  # noqa: ARG002
        second_moment = kv_NF.double().T @ kv_NF.double()
        _, vectors = torch.linalg.eigh(second_moment)  # ascending
        basis = vectors[:, -self.rank :].flip(-1) @ _mixing(self.rank, self.seed).to(vectors)
        self.down.copy_(basis)
        self.up.copy_(basis.T)

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        size = (shape.batch, shape.tokens, self.rank)
        return (Wire(shape=size, format=wire_format(self.config.wire, self.config.group)),)

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        latent_BTR = torch.cat((key_BTE, value_BTE), dim=-1) @ self.down
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(latent_BTR,))

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


def _mixing(rank: int, seed: int) -> Tensor:
    """An orthogonal (rank × rank) matrix that spreads every coordinate over all: Hadamard, or random."""
    if rank & (rank - 1) == 0:
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while matrix.shape[0] < rank:
            matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
        return matrix / rank**0.5
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64, generator=generator)).Q
