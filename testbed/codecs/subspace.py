"""Mixtures of subspaces (Ramasinghe et al., arXiv 2606.16384, section 4).

For Z in {K, V}: the layer is constrained to W = B U Uᵀ, so what everyone uses is Ẑ = Z U Uᵀ with Z = X B,
and what travels is Z U (r numbers per token) and θ. The basis is U(θ) = R(θ) Ū with Ū frozen and

    R(θ) = exp(θ A) ≈ I + θ A + ½ θ² A²,   so   U(θ) = Ū + θ U₁ + ½ θ² U₂,   U₁ = A Ū,  U₂ = A² Ū,

A a fixed random skew-symmetric matrix of spectral norm 1 that every node draws from the same seed.

Where the paper leaves it open, this is what is built:
- θ = 0.5 tanh(ψ(mean of Z) / 0.5) with a learned linear ψ that starts at zero; one θ for each of 4 sub-chunks
  of a node's chunk, taken from the *previous* sub-chunk (the first gets θ = 0), so that nothing sees its future.
- Ū are the leading directions of the warm-started K (V) weights on the output side, jointly over all heads.
- The own chunk is projected too (`own_chunk = "projected"`), as the constraint on W says.
"""

import torch
from torch import Tensor, nn

from testbed.codecs.base import Codec, Encoded, Shape, Wire
from testbed.codecs.wire import wire_format
from testbed.config import CodecConfig
from testbed.errors import UsageError

__all__ = ["SUB_CHUNKS", "Rotated", "Subspace"]

SUB_CHUNKS = 4
_CLIP = 0.5


class Rotated(nn.Module):
    """The rotated basis of K or of V. Shape letters: S sub-chunks, t tokens of one, R rank."""

    def __init__(self, width: int, rank: int, *, seed: int) -> None:
        super().__init__()
        self.rank = rank
        self.seed = seed
        self.angle = nn.Linear(width, 1, bias=False)  # ψ
        nn.init.zeros_(self.angle.weight)
        self.register_buffer("bases", torch.zeros(width, 3 * rank))  # [Ū | U₁ | U₂]

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Ū from `weight` (d_kv × d), U₁ and U₂ from the generator."""
        directions = torch.linalg.svd(weight.double(), full_matrices=False).U[:, : self.rank]
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(len(weight), len(weight), dtype=torch.float64, generator=generator)
        skew = (noise - noise.T).to(directions)
        skew /= torch.linalg.matrix_norm(skew, ord=2)
        rotated = skew @ directions
        self.bases.copy_(torch.cat((directions, rotated, skew @ rotated), dim=1))

    def angles(self, z_BSTE: Tensor) -> Tensor:
        """θ (B, S): of each sub-chunk, from the one before it."""
        previous_BSE = nn.functional.pad(z_BSTE.mean(2)[:, :-1], (0, 0, 1, 0))
        return _CLIP * torch.tanh(self.angle(previous_BSE).squeeze(-1) / _CLIP)

    def basis(self, theta_BS: Tensor) -> Tensor:
        """U(θ) of each sub-chunk: (B, S, E, R)."""
        plain_ER, first_ER, second_ER = self.bases.chunk(3, dim=-1)
        theta = theta_BS[:, :, None, None]
        return plain_ER + theta * first_ER + 0.5 * theta**2 * second_ER

    def project(self, z_BSTE: Tensor, theta_BS: Tensor) -> Tensor:
        """Z U(θ): (B, S, t, R)."""
        return z_BSTE @ self.basis(theta_BS)

    def expand(self, c_BSTR: Tensor, theta_BS: Tensor) -> Tensor:
        """c U(θ)ᵀ: (B, S, t, E)."""
        return c_BSTR @ self.basis(theta_BS).transpose(-1, -2)


class Subspace(Codec):
    """Sends r_K + r_V numbers per token, and 2 · SUB_CHUNKS angles per sequence and chunk."""

    def __init__(self, config: CodecConfig, kv_width: int, *, layer: int, seed: int) -> None:
        super().__init__(config, kv_width, layer=layer, seed=seed)
        if len(config.ranks) != 2 or not all(0 < rank <= kv_width for rank in config.ranks):
            raise UsageError(f"subspace takes two ranks, of K and of V, between 1 and {kv_width}; given {config.ranks}")
        self.key = Rotated(kv_width, config.ranks[0], seed=seed * 1000 + 2 * layer)
        self.value = Rotated(kv_width, config.ranks[1], seed=seed * 1000 + 2 * layer + 1)

    def start(self, key: nn.Linear, value: nn.Linear, kv_NF: Tensor) -> None:  # noqa: ARG002
        self.key.start(key.weight)
        self.value.start(value.weight)

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        if shape.tokens % SUB_CHUNKS:
            raise UsageError(f"subspace needs chunks of a multiple of {SUB_CHUNKS} tokens, not {shape.tokens}")
        numbers = wire_format(self.config.wire, self.config.group)
        sub_chunk = (shape.batch, SUB_CHUNKS, shape.tokens // SUB_CHUNKS)
        angles = Wire(shape=(shape.batch, SUB_CHUNKS), format=wire_format("fp32", 1), channel="theta")
        return (
            Wire(shape=(*sub_chunk, self.key.rank), format=numbers),
            Wire(shape=(*sub_chunk, self.value.rank), format=numbers),
            angles,
            angles,
        )

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        coefficients, thetas = [], []
        for basis, z_BTE in ((self.key, key_BTE), (self.value, value_BTE)):
            z_BSTE = z_BTE.unflatten(1, (SUB_CHUNKS, -1))
            thetas.append(basis.angles(z_BSTE))
            coefficients.append(basis.project(z_BSTE, thetas[-1]))
        parts = (*coefficients, *thetas)
        if self.config.own_chunk == "projected":
            key_BTE, value_BTE = self.decode(parts, ())
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=parts)

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        key_c, value_c, key_theta, value_theta = parts
        return (
            self.key.expand(key_c, key_theta).flatten(1, 2),
            self.value.expand(value_c, value_theta).flatten(1, 2),
        )

    def encode_flops(self, tokens: int) -> float:
        return 2.0 * tokens * self.kv_width * (self.key.rank + self.value.rank)

    def decode_flops(self, tokens: int) -> float:
        return self.encode_flops(tokens)
