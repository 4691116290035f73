"""The basis of K or of V in the subspace codec, and how θ turns it.

R(θ) = exp(M) with M = Σ θ_l A_l, the A_l fixed random skew-symmetric matrices. As a polynomial in θ,

    U(θ) = exp(M) Ū = Σ_α θ^α P_α,   P_0 = Ū,   P_α = 1/|α| · Σ_l A_l P_{α − e_l},

for M^n / n! = (M / n) · M^(n−1) / (n−1)!. The P_α are of Ū's size and computed once; a basis is then a sum of
them, and no d × d product is ever needed. To second order there are 1 + k + k (k + 1) / 2 of them, as in the
paper: Ū, A_l Ū, ½ A_l² Ū, ½ (A_l A_m + A_m A_l) Ū. The whole exponential goes on until the rest is below the
rounding of fp64, which for one generator (‖M‖ ≤ ½) are 14; with more of them they would be too many, and the
M^j Ū / j! are added up for each θ. Either way it is `torch.linalg.matrix_exp(M) Ū`.

Shape letters: B sequences, S sub-chunks, t tokens of one, E = d_kv, R rank, J matrices P, K generators.
"""

import math
from collections.abc import Iterator
from itertools import combinations_with_replacement, count

import torch
from torch import Tensor, nn

from testbed.codecs.bases import orthonormal, random_orthonormal, skew
from testbed.config import SubspaceConfig

__all__ = ["CLIP", "SUB_CHUNKS", "Rotated"]

SUB_CHUNKS = 4
CLIP = 0.5


class Rotated(nn.Module):
    """Ū, ψ and the generators of K or of V. ψ starts at zero, so training starts at Ū."""

    def __init__(self, width: int, rank: int, options: SubspaceConfig, *, heads: int, seed: int) -> None:
        super().__init__()
        self.options, self.rank, self.heads, self.seed = options, rank, heads, seed
        self.generated = k = options.generators if options.rotation != "none" else 0
        self.exponents = [
            exponent
            for length in range(self._order() + 1)
            for exponent in combinations_with_replacement(range(k), length)
        ]
        """Every α as the factors of θ^α: () is 1, (0, 1) is θ_0 θ_1."""
        if options.basis == "trained":
            self.trained = nn.Parameter(torch.zeros(width, rank))
            self.trained.register_hook(self._tangent)
        else:
            self.register_buffer("bases", torch.zeros(len(self.exponents), width, rank))  # P_α, Ū first
        if options.rotation in ("second-order", "exact"):
            self.angle = nn.Linear(width, k, bias=False)  # ψ
            nn.init.zeros_(self.angle.weight)
        elif options.rotation == "random":
            self.register_buffer("drawn", torch.zeros(SUB_CHUNKS, k))
        self.series = options.rotation == "exact" and k > 1
        if self.series:
            self.register_buffer("generators", torch.zeros(k, width, width))
        self.seen: Tensor | None = None
        """Rows of θ that hold the extremes since the last `figures`."""

    @property
    def plain(self) -> Tensor:
        """Ū, or the trained U."""
        return self.trained if self.options.basis == "trained" else self.bases[0]

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Ū from `weight` (d_kv × d) on its output side, or at random; generators and drawn angles from the seed."""
        seeds = count(self.seed * 4096)
        plain = torch.block_diag(*self._directions(weight.double().chunk(self.heads), seeds))
        if self.options.basis == "trained":
            self.trained.copy_(plain)
            return
        skews = [self._skew(len(weight), seeds).to(plain) for _ in range(self.generated)]
        if self.series:
            self.generators.copy_(torch.stack(skews))
        made: dict[tuple[int, ...], Tensor] = {(): plain}
        for exponent in self.exponents[1:]:
            terms = [skews[factor] @ made[_without(exponent, factor)] for factor in sorted(set(exponent))]
            made[exponent] = torch.stack(terms).sum(0) / len(exponent)
        self.bases.copy_(torch.stack(list(made.values())))
        if self.options.rotation == "random":
            generator = torch.Generator().manual_seed(next(seeds))
            self.drawn.copy_(CLIP * (2 * torch.rand(self.drawn.shape, generator=generator) - 1))

    def _directions(self, blocks: tuple[Tensor, ...], seeds: Iterator[int]) -> list[Tensor]:
        """The share of Ū of every head, or the whole."""
        rank = self.rank // self.heads
        if self.options.start == "weights":
            return [torch.linalg.svd(block, full_matrices=False).U[:, :rank] for block in blocks]
        return [random_orthonormal(len(block), rank, next(seeds)).to(block) for block in blocks]

    def _skew(self, width: int, seeds: Iterator[int]) -> Tensor:
        """A generator, which does not mix heads that have bases of their own."""
        frobenius = self.options.normalisation == "frobenius"
        return torch.block_diag(
            *(skew(width // self.heads, next(seeds), frobenius=frobenius) for _ in range(self.heads))
        )

    def angles(self, z_BSTE: Tensor) -> Tensor:
        """θ (B, S, k) = 0.5 tanh(ψ(mean) / 0.5): causal, of the sub-chunk before (none before the first: θ = 0)."""
        mean_BSE = z_BSTE.mean(2, dtype=self.angle.weight.dtype)
        if self.options.theta == "causal":
            mean_BSE = nn.functional.pad(mean_BSE[:, :-1], (0, 0, 1, 0))
        theta_BSK = CLIP * torch.tanh(self.angle(mean_BSE) / CLIP)
        self._observe(theta_BSK.detach())
        return theta_BSK

    def basis(self, theta_BSK: Tensor) -> Tensor:
        """U(θ) of each sub-chunk: (B, S, E, R)."""
        if self.series:
            return self._summed(theta_BSK)
        powers: dict[tuple[int, ...], Tensor] = {(): torch.ones_like(theta_BSK[..., 0])}
        for exponent in self.exponents[1:]:
            powers[exponent] = powers[exponent[:-1]] * theta_BSK[..., exponent[-1]]
        powers_BSJ = torch.stack(list(powers.values()), dim=-1)
        return (powers_BSJ @ self.bases.flatten(1)).unflatten(-1, self.bases.shape[1:])

    def _summed(self, theta_BSK: Tensor) -> Tensor:
        """exp(M) Ū term by term."""
        term = total = self.bases[0].expand(*theta_BSK.shape[:2], -1, -1)
        for j in range(1, self.terms(theta_BSK.dtype) + 1):
            turned = [
                theta_BSK[..., number, None, None] * (generator @ term)
                for number, generator in enumerate(self.generators)
            ]
            term = torch.stack(turned).sum(0) / j
            total = total + term
        return total

    def terms(self, dtype: torch.dtype) -> int:
        """Terms of the series after which the rest is below the rounding of `dtype`."""
        norm, number = CLIP * self.options.generators, 1
        while norm ** (number + 1) / math.factorial(number + 1) > torch.finfo(dtype).eps / 8:
            number += 1
        return number

    def _order(self) -> int:
        """The degree of U(θ) in θ, as far as its matrices are computed once."""
        if self.options.rotation == "exact":
            return self.terms(torch.float64) if self.options.generators == 1 else 0
        return 2

    def flops(self, width: int) -> float:
        """FLOPs of making U(θ) for one sub-chunk."""
        if self.series:
            return 2.0 * self.terms(torch.float32) * self.options.generators * width**2 * self.rank
        return 2.0 * len(self.exponents) * width * self.rank

    @torch.no_grad()
    def retract(self) -> None:
        """Back to orthonormal columns by Q of a QR, signs fixed: equal parameters stay equal to the bit."""
        if self.options.basis == "trained":
            self.trained.copy_(orthonormal(self.trained))

    def _tangent(self, gradient: Tensor) -> Tensor:
        """The gradient without what leaves the Stiefel manifold: G − U sym(Uᵀ G) (Edelman et al. 1998, eq. 2.4)."""
        u = self.trained.detach()
        inner = u.T @ gradient
        return gradient - u @ (inner + inner.T) / 2

    @torch.no_grad()
    def _observe(self, theta_BSK: Tensor) -> None:
        """Keep the rows that hold the extremes of each component and the one of largest norm."""
        rows = theta_BSK.flatten(0, 1)
        if self.seen is not None:
            rows = torch.cat((rows, self.seen))
        self.seen = rows[torch.cat((rows.argmin(0), rows.argmax(0), rows.norm(dim=1).argmax()[None]))]

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """‖UᵀU − I‖₂, the largest for the θ seen since the last call (of Ū where there is none), and their extremes."""
        if self.options.rotation == "random":
            return {"departure": _departure(self.basis(self.drawn[None]))}
        if self.seen is None:
            return {"departure": _departure(self.plain)}
        seen, self.seen = self.seen, None
        return {
            "departure": _departure(self.basis(seen[None])),
            "theta_least": seen.min().item(),
            "theta_most": seen.max().item(),
        }


def _without(exponent: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """α − e_l."""
    at = exponent.index(factor)
    return exponent[:at] + exponent[at + 1 :]


def _departure(basis: Tensor) -> float:
    inner = basis.transpose(-1, -2) @ basis
    identity = torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    return torch.linalg.matrix_norm(inner - identity, ord=2).max().item()
