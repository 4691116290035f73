"""The basis of the subspace codec and how θ turns it."""

import math

import pytest
import torch

from testbed.codecs.bases import skew
from testbed.codecs.rotated import CLIP, Rotated
from testbed.config import SubspaceConfig
from tests.codecs.started import layers


def rotated(width: int = 48, rank: int = 6, heads: int = 1, dtype=torch.float64, **options) -> Rotated:
    made = Rotated(width, rank, SubspaceConfig(**options), heads=heads, seed=5).to(dtype)
    made.start(layers(width=width, model_width=64)[0].weight.to(dtype))
    return made


def departure(basis: torch.Tensor) -> float:
    inner = basis.mT @ basis
    return torch.linalg.matrix_norm(inner - torch.eye(inner.shape[-1], dtype=inner.dtype), ord=2).max().item()


def generators(made: Rotated, width: int) -> torch.Tensor:
    """A_l as `start` drew them."""
    return torch.stack([skew(width, made.seed * 4096 + number) for number in range(made.options.generators)])


@torch.no_grad()
def test_the_basis_is_the_weights_and_orthonormal():
    """Ū spans the leading output directions of W: no other basis of its rank holds more of it."""
    made, weight = rotated(rank=3), layers(width=48, model_width=64)[0].weight.double()
    assert departure(made.plain) < 1e-12
    assert (made.plain.T @ weight).norm().item() == pytest.approx(torch.linalg.svdvals(weight)[:3].norm().item())


@torch.no_grad()
def test_without_a_warm_start_the_basis_is_random():
    """Orthonormal, of the seed, and no better than chance at holding W."""
    made, weight = rotated(rank=3, start="random"), layers(width=48, model_width=64)[0].weight.double()
    assert departure(made.plain) < 1e-12
    assert (made.plain.T @ weight).norm() < 0.8 * torch.linalg.svdvals(weight)[:3].norm()


@pytest.mark.parametrize("count", [1, 2, 4])
@torch.no_grad()
def test_the_exact_exponential_is_torchs(count):
    """The series equals `torch.linalg.matrix_exp` to rounding, and U stays orthonormal."""
    made = rotated(rotation="exact", generators=count)
    theta = CLIP * torch.tensor([1.0, -0.7, 0.4, -1.0], dtype=torch.float64)[:count]
    matrix = torch.linalg.matrix_exp((theta[:, None, None] * generators(made, 48)).sum(0))
    basis = made.basis(theta[None, None])[0, 0]
    assert torch.allclose(basis, matrix @ made.plain, atol=1e-13)
    assert departure(basis) < 1e-13


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_second_order_is_the_series_up_to_its_square(count):
    """(I + M + M²/2) Ū, from the matrices computed once."""
    made = rotated(generators=count)
    theta = CLIP * torch.tensor([0.9, -0.5, 0.3], dtype=torch.float64)[:count]
    turn = (theta[:, None, None] * generators(made, 48)).sum(0)
    expected = made.plain + turn @ made.plain + turn @ turn @ made.plain / 2
    assert torch.allclose(made.basis(theta[None, None])[0, 0], expected, atol=1e-13)


@torch.no_grad()
def test_second_order_differs_from_the_exponential_by_the_cube():
    """At most θ³/6, and an eighth of it at half of θ."""
    second, exact = rotated(), rotated(rotation="exact")
    assert torch.equal(second.plain, exact.plain)

    def difference(theta: float) -> float:
        at = torch.full((1, 1, 1), theta, dtype=torch.float64)
        return torch.linalg.matrix_norm(second.basis(at)[0, 0] - exact.basis(at)[0, 0], ord=2).item()

    assert 0 < difference(0.5) <= 0.5**3 / 6
    assert difference(0.5) / difference(0.25) == pytest.approx(8, rel=0.05)
    assert difference(0.0) == 0


@pytest.mark.parametrize("theta", [0.0, 0.1, 0.5, -0.5])
@torch.no_grad()
def test_second_order_departs_from_orthonormal_as_it_must(theta):
    """‖UᵀU − I‖ ≤ θ⁴/4 for a generator of spectral norm 1, since RᵀR = I + θ⁴A⁴/4; reached but for Ū's share in it."""
    made = rotated()
    found = departure(made.basis(torch.full((1, 1, 1), theta, dtype=torch.float64)))
    assert found <= theta**4 / 4 + 1e-12
    assert found >= theta**4 / 40 - 1e-12


@torch.no_grad()
def turn_degrees(normalisation: str, width: int) -> float:
    """Root mean square angle between the columns of Ū and of U(0.5)."""
    made = rotated(width, rank=8, rotation="exact", normalisation=normalisation)
    cosines = (made.plain * made.basis(torch.full((1, 1, 1), CLIP, dtype=torch.float64))[0, 0]).sum(0)
    return math.degrees(cosines.acos().square().mean().sqrt())


def test_the_norm_decides_how_far_theta_turns():
    """Spectral: about 0.25 rad whatever the width, for columns of A are about half its norm; Frobenius: 0.5 / √d rad,
    which is next to nothing for wide models."""
    assert turn_degrees("spectral", 64) == pytest.approx(14.3, abs=2)
    assert turn_degrees("spectral", 512) == pytest.approx(14.3, abs=1)
    assert turn_degrees("frobenius", 64) == pytest.approx(math.degrees(CLIP / 8), rel=0.2)
    assert turn_degrees("frobenius", 512) == pytest.approx(math.degrees(CLIP / 512**0.5), rel=0.1)


def test_training_starts_at_the_unrotated_basis():
    """ψ is zero at first, and however large it grows θ stays within the clip."""
    made = rotated()
    z_BSTE = torch.randn(2, 4, 3, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not made.angles(z_BSTE).any()
    torch.nn.init.constant_(made.angle.weight, 100.0)
    theta = made.angles(z_BSTE)
    assert not theta[:, 0].any()  # nothing comes before the first sub-chunk
    assert theta.abs().max() <= CLIP
    assert theta[:, 1:].abs().min() > 0.4


def test_per_head_bases_do_not_mix_heads():
    """With one basis per head U(θ) has a block for each and zeros elsewhere; with a joint one it has none."""
    theta = torch.full((1, 1, 1), 0.4, dtype=torch.float64)
    blocks = [
        torch.stack([block[:, 2 * head : 2 * head + 2] for head, block in enumerate(made.basis(theta)[0, 0].chunk(3))])
        for made in (rotated(heads=3), rotated(heads=1))
    ]
    whole = [made.basis(theta).norm() for made in (rotated(heads=3), rotated(heads=1))]
    assert blocks[0].norm().item() == pytest.approx(whole[0].item())
    assert blocks[1].norm() < 0.9 * whole[1]
    assert departure(rotated(heads=3).plain) < 1e-12


def test_a_trained_basis_stays_orthonormal():
    """The gradient is tangent, and the retraction restores UᵀU = I, which the step alone loses (negative control)."""
    made = rotated(rotation="none", basis="trained")
    target = torch.randn(48, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        made.zero_grad()
        (made.plain - target).square().sum().backward()
        assert made.trained.grad is not None
        inner = made.trained.T @ made.trained.grad
        assert torch.allclose(inner, -inner.T, atol=1e-12)
        with torch.no_grad():
            made.trained.sub_(0.3 * made.trained.grad)
        assert departure(made.trained) > 1e-3
        made.retract()
        assert departure(made.trained) < 1e-12
        before = made.trained.clone()
        made.retract()
        assert torch.allclose(made.trained, before, atol=1e-12)


def test_training_a_basis_finds_a_better_one():
    """Steps along the tangent gradient with retractions lower the loss of projecting some activations."""
    made = rotated(rotation="none", basis="trained", start="random")
    x = torch.randn(64, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(30):
        made.zero_grad()
        loss = (x - x @ made.plain @ made.plain.T).square().mean()
        loss.backward()
        losses.append(loss.item())
        assert made.trained.grad is not None
        with torch.no_grad():
            made.trained.sub_(5.0 * made.trained.grad)
        made.retract()
    assert losses[-1] < 0.95 * losses[0]


def test_figures_are_of_the_largest_angles_seen():
    """The extremes over all calls since the last figures, and the departure there: θ⁴/4 bounds it."""
    made = rotated(generators=2)
    torch.nn.init.normal_(made.angle.weight, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    thetas = torch.cat(
        [made.angles(torch.randn(2, 4, 3, 48, dtype=torch.float64, generator=generator)) for _ in range(5)]
    )
    figures = made.figures()
    assert figures["theta_least"] == thetas.min().item()
    assert figures["theta_most"] == thetas.max().item()
    norms = thetas.norm(dim=-1)
    assert figures["departure"] >= departure(made.basis(thetas[norms == norms.max()][None])) - 1e-12
    assert figures["departure"] > 1e-5
    assert figures["departure"] <= (2 * CLIP) ** 4 / 4
    assert made.figures()["departure"] < 1e-12  # seen no angle since
