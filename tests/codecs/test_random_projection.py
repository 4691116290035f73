"""random: a projection that nothing was learned about."""

import pytest
import torch

from testbed.codecs import Shape, make_codec
from testbed.codecs.random_projection import RandomProjection
from testbed.config import CodecConfig
from tests.codecs.started import WIDTH, chunk, layers, started


@pytest.mark.parametrize("wire", ["bf16", "int8", "int4"])
def test_it_costs_what_the_latent_costs(wire):
    """The null is matched in bytes, both ways, at any wire."""
    shape = Shape(batch=2, tokens=12)
    random, latent = (
        make_codec(CodecConfig(name=f"{name}+{wire}", ranks=(7,)), WIDTH, layer=0, seed=0)
        for name in ("random", "latent")
    )
    for direction in ("forward", "backward"):
        assert random.payload(shape, direction) == latent.payload(shape, direction)


@torch.no_grad()
def test_the_projection_is_orthogonal_and_of_the_seed():
    """P Pᵀ projects; another layer has another P; nothing is trained."""
    codec = started(CodecConfig(name="random", ranks=(6,)))
    assert isinstance(codec, RandomProjection)
    assert torch.allclose(codec.basis.T @ codec.basis, torch.eye(6), atol=1e-6)
    assert not list(codec.parameters())
    other = make_codec(CodecConfig(name="random", ranks=(6,)), WIDTH, layer=2, seed=3)
    assert isinstance(other, RandomProjection)
    other.start(*layers(), torch.zeros(1, 2 * WIDTH))
    assert not torch.allclose(other.basis, codec.basis, atol=0.1)


@torch.no_grad()
def test_it_keeps_no_more_than_its_share():
    """r of 2·d_kv directions hold r / (2·d_kv) of the energy: what the principal ones hold is worth more."""
    key, value = chunk(64, 8)
    codec = started(CodecConfig(name="random", ranks=(8,)))
    k_seen, v_seen = codec.decode(codec.encode(key, value).parts, ())
    share = (k_seen.square().sum() + v_seen.square().sum()) / (key.square().sum() + value.square().sum())
    assert share.item() == pytest.approx(8 / (2 * WIDTH), rel=0.1)
