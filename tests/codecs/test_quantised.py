"""int8 and int4: groups of small integers, straight through."""

import pytest
import torch

from testbed.codecs import Shape, make_codec, whole
from testbed.config import CodecConfig
from testbed.errors import UsageError
from tests.codecs.started import chunk, seen, started

SHAPE = Shape(batch=2, tokens=8)


def with_outliers(width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V with one channel in 32 that stands far out, as trained models have them."""
    key, value = chunk(width=width)
    key[..., ::32] *= 30
    value[..., ::32] *= 30
    return key, value


@pytest.mark.parametrize(("name", "allowed"), [("int8", 1 / 127), ("int4", 1 / 7)])
@pytest.mark.parametrize("hadamard", [False, True])
def test_only_rounding_is_lost(name, allowed, hadamard):
    """Within half a step of the group's largest number, seen through H where there is one."""
    codec = started(CodecConfig(name=name, group=16, hadamard=hadamard), width=32)
    key, value = chunk(width=32)
    for ours, theirs in zip(seen(codec, key, value), (key, value), strict=True):
        assert (ours - theirs).norm() <= allowed * theirs.norm()
        assert (ours != theirs).any()


@torch.no_grad()
def test_hadamard_is_undone_and_saves_what_stands_beside_an_outlier():
    """Behind the wire the rotation is gone; the numbers beside an outlier keep more of four bits than without it."""
    key, value = with_outliers()
    error = {}
    for hadamard in (False, True):
        codec = started(CodecConfig(name="int4", hadamard=hadamard), width=64)
        parts = codec.encode(key, value).parts
        assert torch.allclose(codec.decode(parts, ())[0], key, atol=1e-4)
        quiet = torch.arange(64) % 32 != 0
        error[hadamard] = (seen(codec, key, value)[0] - key)[..., quiet].norm() / key[..., quiet].norm()
    assert error[True] < 0.8 < error[False] + 0.3
    assert error[True] < 0.7 * error[False]


def test_gradients_pass_straight_through():
    """What comes back is the gradient of what was decoded, rounded by its own format only."""
    codec = started(CodecConfig(name="int4", group=8, wire_backward="int8"))
    key, value = (z.requires_grad_() for z in chunk())
    encoded = codec.encode(key, value)
    d_key, d_value = chunk(seed=9)
    message = codec.pack((d_key, d_value), SHAPE, "backward")
    arrived = whole(codec.unpack(message, SHAPE, key, "backward"))
    torch.autograd.backward(encoded.parts, arrived)
    assert key.grad is not None
    assert value.grad is not None
    assert (key.grad - d_key).abs().max() <= d_key.abs().max() / 127
    assert torch.equal(value.grad, arrived[1])


def test_each_direction_has_its_format():
    """Four bits out, eight back: 5/8 and 9/8 byte per number in groups of 16."""
    codec = started(CodecConfig(name="int4", group=16, wire_backward="int8"))
    numbers = 2 * 2 * 8 * 16
    assert codec.payload(SHAPE) == {"kv": numbers * 5 // 8}
    assert codec.payload(SHAPE, "backward") == {"kv": numbers * 9 // 8}


@pytest.mark.parametrize(("group", "width"), [(12, 24), (32, 48)])
def test_hadamard_needs_groups_that_have_one(group, width):
    """Powers of two that divide the width."""
    with pytest.raises(UsageError, match="power of two"):
        make_codec(CodecConfig(name="int4", group=group, hadamard=True), width, layer=0, seed=0)
    make_codec(CodecConfig(name="int4", group=group), width, layer=0, seed=0)
