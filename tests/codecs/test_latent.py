"""The learned latent, and the composition called best."""

import pytest
import torch

from testbed.codecs import Shape, make_codec
from testbed.codecs.bases import principal
from testbed.codecs.best import Best
from testbed.codecs.latent import Latent
from testbed.config import CodecConfig
from testbed.errors import UsageError
from tests.codecs.started import chunk, layers, started


def uneven(rank: int, width: int = 32, **options) -> tuple[Latent, torch.Tensor]:
    """A latent codec and the activations it was started from, whose directions differ by orders of magnitude."""
    codec = make_codec(CodecConfig(name="latent", ranks=(rank,), **options), width, layer=0, seed=0)
    assert isinstance(codec, Latent)
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(300, 2 * width, generator=generator) @ torch.diag(torch.logspace(0, -20, 2 * width))
    codec.start(*layers(width=width), activations)
    return codec, activations


@pytest.mark.parametrize("rank", [6, 8])
@torch.no_grad()
def test_it_starts_at_the_best_projection(rank):
    """D U is the projection onto the activations' principal directions, which no other of its rank beats."""
    codec, activations = uneven(rank, wire="fp32")
    error = (activations @ codec.down @ codec.up - activations).norm()
    best = torch.linalg.svdvals(activations)[rank:].norm()
    assert error.item() == pytest.approx(best.item(), rel=1e-3)


@pytest.mark.parametrize("rank", [6, 8])
@torch.no_grad()
def test_coefficients_are_even(rank):
    """The rotation within the span evens out sizes that differ by orders of magnitude: four bits need that."""
    codec, activations = uneven(rank, wire="int4")
    size = (activations @ codec.down).square().mean(0).sqrt()
    unrotated = (activations @ principal(activations, rank).float()).square().mean(0).sqrt()
    assert size.max() / size.min() < 10 < unrotated.max() / unrotated.min()


def test_own_chunk_is_exact_unless_asked():
    """By default the owner keeps its K and V; projected, it sees what the others see."""
    key, value = chunk()
    assert started(CodecConfig(name="latent", ranks=(6,))).encode(key, value).key_BTE is key
    codec = started(CodecConfig(name="latent", ranks=(6,), own_chunk="projected"))
    encoded = codec.encode(key, value)
    for ours, theirs in zip(
        (encoded.key_BTE, encoded.value_BTE), codec.decode(encoded.parts, codec.decoder_parameters()), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("width", [128, 256, 2048])
def test_best_is_a_quarter_of_the_width_at_four_bits(width):
    """18 of 512 bytes at d_kv = 128, and 3.5 % at any width: within 3.7 % of exact K and V."""
    shape = Shape(batch=1, tokens=64)
    with torch.device("meta"):
        best, exact = (make_codec(CodecConfig(name=name), width, layer=0, seed=0) for name in ("best", "exact"))
    assert isinstance(best, Best)
    assert best.own_chunk == "exact"
    for direction in ("forward", "backward"):
        assert best.payload(shape, direction)["kv"] / exact.payload(shape, direction)["kv"] == 18 / 512 <= 0.037


@pytest.mark.parametrize("options", [{"ranks": (8,)}, {"own_chunk": "projected"}, {"fraction": 0.1}])
def test_best_is_not_to_be_changed(options):
    """It is a name for one composition; latent+int4 takes options."""
    with pytest.raises(UsageError):
        make_codec(CodecConfig(name="best", **options), 32, layer=0, seed=0)


def test_best_needs_a_width():
    """A quarter of three is no rank."""
    with pytest.raises(UsageError, match="d_kv / 4"):
        make_codec(CodecConfig(name="best"), 3, layer=0, seed=0)
