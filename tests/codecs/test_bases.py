"""Matrices that codecs start from."""

import pytest
import torch

from testbed.codecs.bases import hadamard, mixing, orthonormal, principal, random_orthonormal, skew


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_hadamard_is_orthogonal_symmetric_and_even(size):
    """H Hᵀ = I, H = Hᵀ, and every entry is as large as every other."""
    matrix = hadamard(size)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5), atol=1e-12)


def test_hadamard_only_of_powers_of_two():
    """There is no such matrix of size 6; `mixing` takes a random orthogonal one there."""
    with pytest.raises(AssertionError):
        hadamard(6)
    matrix = mixing(6, seed=0)
    assert torch.allclose(matrix @ matrix.T, torch.eye(6, dtype=torch.float64), atol=1e-12)


def test_orthonormal_is_unique():
    """Q is the same for every matrix that differs by an upper triangular factor with a positive diagonal."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    factor = torch.randn(4, 4, dtype=torch.float64, generator=generator).triu(1) + torch.diag(torch.arange(1.0, 5.0))
    q = orthonormal(matrix)
    assert torch.allclose(q.T @ q, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(orthonormal(matrix @ factor), q, atol=1e-10)
    assert torch.allclose(orthonormal(torch.stack((matrix, -matrix)))[1], -q, atol=1e-12)


def test_random_columns_are_orthonormal_and_of_the_seed():
    """The same from the same seed only."""
    one = random_orthonormal(20, 5, 1)
    assert torch.allclose(one.T @ one, torch.eye(5, dtype=torch.float64), atol=1e-12)
    assert torch.equal(one, random_orthonormal(20, 5, 1))
    assert not torch.equal(one, random_orthonormal(20, 5, 2))


@pytest.mark.parametrize(("frobenius", "norm"), [(False, 2), (True, "fro")])
def test_generators_are_skew_and_of_norm_one(frobenius, norm):
    """Aᵀ = −A, and the norm asked for is 1."""
    matrix = skew(31, 4, frobenius=frobenius)
    assert torch.equal(matrix, -matrix.T)
    assert torch.linalg.matrix_norm(matrix, ord=norm).item() == pytest.approx(1)


def test_principal_directions_are_the_best_of_their_rank():
    """What they leave out is what the singular values say."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(100, 12, dtype=torch.float64, generator=generator) @ torch.diag(
        torch.logspace(0, -3, 12).double()
    )
    basis = principal(samples, 3)
    left = (samples - samples @ basis @ basis.T).norm()
    assert left.item() == pytest.approx(torch.linalg.svdvals(samples)[3:].norm().item())
