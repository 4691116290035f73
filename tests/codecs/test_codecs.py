"""Codecs: what they promise in bytes and in arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from testbed.codecs import Shape, codec_names, make_codec
from testbed.codecs.subspace import SUB_CHUNKS
from testbed.codecs.wire import wire_format
from testbed.config import CodecConfig
from testbed.errors import UsageError


def started(config: CodecConfig, width: int = 32, model_width: int = 48):
    """A codec with its starting state, and the activations it was started from."""
    codec = make_codec(config, width, layer=0, seed=0)
    generator = torch.Generator().manual_seed(0)
    key, value = nn.Linear(model_width, width, bias=False), nn.Linear(model_width, width, bias=False)
    activations = torch.randn(300, 2 * width, generator=generator) @ torch.diag(torch.logspace(0, -9, 2 * width))
    codec.start(key, value, activations)
    return codec, key, value, activations


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["fp32", "bf16", "int8", "int4"]),
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    group=st.sampled_from([2, 8, 32]),
    scale=st.floats(1e-7, 1e4),
)
def test_wire_formats_keep_their_word(name, shape, group, scale):
    """The bytes are the closed form; what comes back differs by rounding only."""
    format_ = wire_format(name, group)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale
    message = format_.pack(tensor)
    assert message.dtype == torch.uint8
    assert message.numel() == format_.nbytes(tuple(shape))
    back = format_.unpack(message, tuple(shape))
    allowed = {"fp32": 0.0, "bf16": 2**-8, "int8": 1 / 127, "int4": 1 / 7}[name] * tensor.abs().max()
    assert (back - tensor).abs().max() <= allowed


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_integers_are_really_packed(bits):
    """4096 numbers in groups of 32: half a byte or a byte each, and 256 bytes of scales."""
    assert wire_format(bits, 32).nbytes((64, 64)) == 4096 * int(bits[3:]) // 8 + 256


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_zeros_stay_zero(bits):
    """A group without any magnitude has no scale to divide by."""
    format_ = wire_format(bits, 8)
    assert not format_.unpack(format_.pack(torch.zeros(3, 16)), (3, 16)).any()


def test_compressed_payload_at_the_papers_size():
    """At most 3.7 % of the exact bytes of K and V, for both compressed codecs."""
    shape = Shape(batch=1, tokens=16384)
    with torch.device("meta"):
        exact = make_codec(CodecConfig(), 2048, layer=0, seed=0).payload(shape)
        subspace = make_codec(CodecConfig(name="subspace", ranks=(41, 102)), 2048, layer=0, seed=0).payload(shape)
        latent = make_codec(CodecConfig(name="latent", ranks=(512,), wire="int4"), 2048, layer=0, seed=0).payload(shape)
    assert exact == {"kv": 134_217_728}
    assert subspace == {"kv": 16384 * 143 * 2, "theta": 2 * SUB_CHUNKS * 4}
    assert latent == {"kv": 16384 * (256 + 32)}
    for compressed in (subspace, latent):
        assert sum(compressed.values()) <= 0.037 * 134_217_728


@torch.no_grad()
def test_latent_starts_at_the_best_projection():
    """D U is the projection onto the activations' principal directions, which no other of its rank beats."""
    codec, _, _, activations = started(CodecConfig(name="latent", ranks=(8,), wire="fp32"))
    error = (activations @ codec.down @ codec.up - activations).norm()
    best = torch.linalg.svdvals(activations)[8:].norm()
    assert error == pytest.approx(float(best), rel=1e-3)


@torch.no_grad()
def test_latent_coefficients_are_even():
    """The rotation within the span evens out sizes that differ by orders of magnitude: four bits need that."""
    codec, _, _, activations = started(CodecConfig(name="latent", ranks=(8,), wire="int4"))
    size = (activations @ codec.down).square().mean(0).sqrt()
    unrotated = torch.linalg.svdvals(activations)[:8]
    assert size.max() / size.min() < 3 < unrotated[0] / unrotated[-1]


@torch.no_grad()
def test_subspace_basis_is_the_weights_and_orthonormal():
    """Ū spans the leading output directions of W_k, and projecting twice changes nothing."""
    codec, key, _, _ = started(CodecConfig(name="subspace", ranks=(3, 6)))
    basis = codec.key.plain
    assert torch.allclose(basis.T @ basis, torch.eye(3), atol=1e-5)
    leading = torch.linalg.svdvals(key.weight)[:3].norm()
    assert (basis.T @ key.weight).norm() == pytest.approx(float(leading), rel=1e-4)


@pytest.mark.parametrize("theta", [0.0, 0.1, 0.5, -0.5])
def test_second_order_rotation_departs_from_orthonormal_as_it_must(theta):
    """‖UᵀU − I‖ ≤ θ⁴/4 for a generator of spectral norm 1 (RᵀR = I + θ⁴A⁴/4)."""
    codec, _, _, _ = started(CodecConfig(name="subspace", ranks=(3, 6)))
    basis = codec.value.basis(torch.full((1, 1, 1), theta))[0, 0]
    departure = torch.linalg.matrix_norm(basis.T @ basis - torch.eye(6), ord=2)
    assert departure <= theta**4 / 4 + 1e-5


@torch.no_grad()
def test_training_starts_at_the_unrotated_basis():
    """ψ starts at zero, so θ = 0 and Ẑ = Z Ū Ūᵀ."""
    codec, _, _, _ = started(CodecConfig(name="subspace", ranks=(3, 6)))
    key, value = torch.randn(2, 16, 32), torch.randn(2, 16, 32)
    encoded = codec.encode(key, value)
    basis = codec.key.plain
    assert torch.allclose(encoded.key_BTE, key @ basis @ basis.T, atol=1e-5)


def test_own_chunk_may_stay_exact():
    """own_chunk = exact leaves the owner its K and V."""
    codec, _, _, _ = started(CodecConfig(name="subspace", ranks=(3, 6), own_chunk="exact"))
    key, value = torch.randn(2, 16, 32), torch.randn(2, 16, 32)
    assert codec.encode(key, value).key_BTE is key


@pytest.mark.parametrize(
    "config",
    [
        CodecConfig(name="subspace", ranks=(3,)),
        CodecConfig(name="subspace", ranks=(3, 99)),
        CodecConfig(name="latent", ranks=()),
        CodecConfig(name="latent", ranks=(65,)),
        CodecConfig(name="lattent"),
    ],
)
def test_wrong_codecs_are_refused_in_a_sentence(config):
    """What was given and what is allowed."""
    with pytest.raises(UsageError) as refusal:
        make_codec(config, 32, layer=0, seed=0)
    assert "\n" not in str(refusal.value)


def test_ours_are_known():
    """The names that the documentation uses."""
    assert {"exact", "subspace", "latent"} <= set(codec_names())
