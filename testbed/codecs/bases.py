"""Matrices that codecs start from, in double precision and the same from the same seed; QR."""

import torch
from torch import Tensor

__all__ = ["hadamard", "mixing", "orthonormal", "principal", "random_orthonormal", "skew"]


def hadamard(size: int) -> Tensor:
    """The orthogonal, symmetric Hadamard matrix of Sylvester's construction; `size` is a power of two."""
    assert size > 0, size
    assert size & (size - 1) == 0, size
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / size**0.5


def mixing(size: int, seed: int) -> Tensor:
    """An orthogonal matrix that spreads every coordinate over all: Hadamard, or random where there is none."""
    return hadamard(size) if size & (size - 1) == 0 else random_orthonormal(size, size, seed)


def orthonormal(matrix: Tensor) -> Tensor:
    """Q of `matrix` = Q R with the diagonal of R made positive, which makes Q unique."""
    q, r = torch.linalg.qr(matrix)
    return q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)


def random_orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """Orthonormal columns that span a uniformly random subspace."""
    generator = torch.Generator().manual_seed(seed)
    return orthonormal(torch.randn(rows, columns, dtype=torch.float64, generator=generator))


def principal(samples_NF: Tensor, rank: int) -> Tensor:
    """(F × rank) leading principal directions, not centred."""
    samples = samples_NF.double()
    _, vectors = torch.linalg.eigh(samples.T @ samples)  # ascending
    return vectors[:, -rank:].flip(-1)


def skew(size: int, seed: int, *, frobenius: bool = False) -> Tensor:
    """A random skew-symmetric matrix of spectral (or Frobenius) norm 1; zero where size is 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, size, dtype=torch.float64, generator=generator)
    matrix = noise - noise.T
    norm = torch.linalg.matrix_norm(matrix, ord="fro" if frobenius else 2)
    return matrix / norm if size > 1 else matrix
