"""The basis of K or of V in the subspace codec, and how θ turns it.

R(θ) = exp(M) with M = Σ θ_l A_l, the A_l fixed random skew-symmetric matrices. To second order

    U(θ) = R(θ) Ū ≈ Ū + Σ_l θ_l A_l Ū + ½ Σ_l θ_l² A_l² Ū + ½ Σ_{l<m} θ_l θ_m (A_l A_m + A_m A_l) Ū,

a sum of 1 + k + k (k + 1) / 2 matrices of Ū's size that are computed once: no d × d product is ever needed. The
whole exponential is applied to Ū term by term, M^j Ū / j!, until what is left out is below the rounding of the
numbers: ‖M‖ ≤ k / 2, so that is the same as `torch.linalg.matrix_exp` and costs no more than a dozen thin products.

Shape letters: B sequences, S sub-chunks, t tokens of one, E = d_kv, R rank, J matrices, k generators.
"""

import math
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
        k = options.generators if options.rotation != "none" else 0
        self.pairs = list(combinations_with_replacement(range(k), 2)) if options.rotation != "exact" else []
        matrices = 1 if options.rotation == "exact" else 1 + k + len(self.pairs)
        if options.basis == "trained":
            self.trained = nn.Parameter(torch.zeros(width, rank))
            self.trained.register_hook(self._tangent)
        else:
            self.register_buffer("bases", torch.zeros(matrices, width, rank))  # Ū first
        if options.rotation in ("second-order", "exact"):
            self.angle = nn.Linear(width, k, bias=False)  # ψ
            nn.init.zeros_(self.angle.weight)
        elif options.rotation == "random":
            self.register_buffer("drawn", torch.zeros(SUB_CHUNKS, k))
        if options.rotation == "exact":
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
        blocks, rank = weight.double().chunk(self.heads), self.rank // self.heads
        if self.options.start == "weights":
            directions = [torch.linalg.svd(block, full_matrices=False).U[:, :rank] for block in blocks]
        else:
            directions = [random_orthonormal(len(block), rank, next(seeds)).to(weight.device) for block in blocks]
        plain = torch.block_diag(*directions)
        if self.options.basis == "trained":
            self.trained.copy_(plain)
            return
        frobenius = self.options.normalisation == "frobenius"
        k = self.options.generators if self.options.rotation != "none" else 0
        skews = [
            torch.block_diag(*(skew(len(block), next(seeds), frobenius=frobenius) for block in blocks)).to(plain)
            for _ in range(k)
        ]
        if self.options.rotation == "exact":
            self.bases.copy_(plain[None])
            self.generators.copy_(torch.stack(skews))
            return
        first = [matrix @ plain for matrix in skews]
        second = [(0.25 if m == n else 0.5) * (skews[m] @ first[n] + skews[n] @ first[m]) for m, n in self.pairs]
        self.bases.copy_(torch.stack([plain, *first, *second]))
        if self.options.rotation == "random":
            generator = torch.Generator().manual_seed(next(seeds))
            self.drawn.copy_(CLIP * (2 * torch.rand(self.drawn.shape, generator=generator) - 1))

    def angles(self, z_BSTE: Tensor) -> Tensor:
        """θ (B, S, k) = 0.5 tanh(ψ(mean) / 0.5): causal, of the sub-chunk before (none before the first: θ = 0)."""
        mean_BSE = z_BSTE.mean(2)
        if self.options.theta == "causal":
            mean_BSE = nn.functional.pad(mean_BSE[:, :-1], (0, 0, 1, 0))
        theta_BSK = CLIP * torch.tanh(self.angle(mean_BSE) / CLIP)
        self._observe(theta_BSK.detach())
        return theta_BSK

    def basis(self, theta_BSK: Tensor) -> Tensor:
        """U(θ) of each sub-chunk: (B, S, E, R)."""
        theta_BSK = theta_BSK.reshape(*theta_BSK.shape[:2], -1)
        if self.options.rotation == "exact":
            return self._exponential(theta_BSK)
        products = [theta_BSK[..., m] * theta_BSK[..., n] for m, n in self.pairs]
        factors_BSJ = torch.cat((torch.ones_like(theta_BSK[..., :1]), theta_BSK, torch.stack(products, -1)), dim=-1)
        return (factors_BSJ @ self.bases.flatten(1)).unflatten(-1, self.bases.shape[1:])

    def _exponential(self, theta_BSK: Tensor) -> Tensor:
        """exp(M) Ū by its series."""
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

    def flops(self, width: int) -> float:
        """Of U(θ) for one sub-chunk."""
        if self.options.rotation == "exact":
            return 2.0 * self.terms(torch.float32) * self.options.generators * width**2 * self.rank
        return 2.0 * (1 + self.options.generators + len(self.pairs)) * width * self.rank

    @torch.no_grad()
    def retract(self) -> None:
        """The nearest way back to orthonormal columns that is the same bits everywhere: Q of a sign-fixed QR."""
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


def _departure(basis: Tensor) -> float:
    inner = basis.transpose(-1, -2) @ basis
    identity = torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    return torch.linalg.matrix_norm(inner - identity, ord=2).max().item()
