"""pca: each chunk's own basis, sent along."""

import pytest
import torch

from testbed.codecs import Shape
from testbed.config import CodecConfig
from tests.codecs.started import WIDTH, chunk, floating, layers, seen, started


def test_bytes_of_the_basis():
    """r numbers per token and 2·d_kv · r in bf16 per chunk and sequence, whatever the wire; the basis stays there."""
    shape = Shape(batch=2, tokens=8)
    codec = started(CodecConfig(name="pca", ranks=(4,)))
    basis = 2 * 2 * WIDTH * 4 * 2
    assert codec.payload(shape) == {"kv": 2 * 8 * 4 * 2 + basis}
    assert codec.payload(shape, "backward") == {"kv": 2 * 8 * 4 * 2}
    quantised = started(CodecConfig(name="pca+int8", ranks=(4,)))
    assert quantised.payload(shape) == {"kv": 2 * 8 * (4 + 2) + basis}


@torch.no_grad()
def test_no_basis_of_its_rank_fits_much_better():
    """From the activations' directions two rounds come close to the chunk's own, for every sequence apart."""
    codec = started(floating(CodecConfig(name="pca", ranks=(4,))), dtype=torch.float64)
    mixing = torch.diag(torch.logspace(0, -2, 2 * WIDTH, dtype=torch.float64))
    earlier = torch.cat(chunk(1, 400, seed=7, dtype=torch.float64), -1)[0] @ mixing
    codec.start(*layers(), earlier)
    for batch in (1, 3):
        x = torch.cat(chunk(batch, 64, dtype=torch.float64), -1) @ mixing
        c, basis = codec.encode(*x.chunk(2, -1)).parts
        assert torch.allclose(basis.mT @ basis, torch.eye(4, dtype=torch.float64).expand(batch, 4, 4), atol=1e-12)
        left = (x - c @ basis.mT).norm(dim=(1, 2))
        least = torch.linalg.svdvals(x)[:, 4:].norm(dim=1)
        assert (left <= 1.05 * least).all()


@torch.no_grad()
def test_what_lies_in_few_directions_comes_back():
    """K and V of rank 3 through rank 4: only the wire's rounding is lost."""
    codec = started(CodecConfig(name="pca", ranks=(4,)))
    low = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0)) @ torch.cat(chunk(1, 3), -1)
    key, value = low.chunk(2, -1)
    for ours, theirs in zip(seen(codec, key, value), (key, value), strict=True):
        assert (ours - theirs).norm() <= 0.01 * theirs.norm()


def test_both_ends_use_the_rounded_basis():
    """The coefficients are of the basis that the receiver has, not of the one before rounding."""
    codec, (key, value) = started(CodecConfig(name="pca", ranks=(4,))), chunk()
    c, basis = codec.encode(key, value).parts
    assert torch.equal(basis, basis.bfloat16().float())
    assert torch.allclose(c, torch.cat((key, value), -1) @ basis, atol=1e-6)
    assert not basis.requires_grad


def test_the_own_chunk_cannot_be_projected():
    """Its basis sees the end of the chunk."""
    with pytest.raises(ValueError, match="own chunk exact"):
        started(CodecConfig(name="pca", ranks=(4,), own_chunk="projected"))
