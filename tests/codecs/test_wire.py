"""Numbers and places as bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.codecs.wire import Indices, wire_format


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["fp64", "fp32", "bf16", "int8", "int4"]),
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    group=st.sampled_from([1, 2, 3, 8, 32]),
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
    allowed = {"fp64": 0.0, "fp32": 0.0, "bf16": 2**-8, "int8": 1 / 127, "int4": 1 / 7}[name] * tensor.abs().max()
    assert (back - tensor).abs().max() <= allowed


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_integers_are_really_packed(bits):
    """4096 numbers in groups of 32: half a byte or a byte each, and 256 bytes of scales."""
    assert wire_format(bits, 32).nbytes((64, 64)) == 4096 * int(bits[3:]) // 8 + 256


@pytest.mark.parametrize(("bits", "nbytes"), [("int4", 3 + 2), ("int8", 5 + 2)])
def test_a_short_group_is_not_filled_up(bits, nbytes):
    """Five numbers in groups of 32 cost five codes and one scale."""
    assert wire_format(bits, 32).nbytes((1, 5)) == nbytes


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_groups_have_scales_of_their_own(bits):
    """Small numbers beside large ones keep their precision in another group, and lose it in the same."""
    tensor = torch.cat((torch.full((8,), 1e3), torch.linspace(0.1, 1, 8)))
    apart, together = (wire_format(bits, group) for group in (8, 16))
    assert torch.allclose(apart.unpack(apart.pack(tensor), (16,))[8:], tensor[8:], atol=0.1)
    assert not together.unpack(together.pack(tensor), (16,))[8:].any()


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_zeros_stay_zero(bits):
    """A group without any magnitude has no scale to divide by."""
    format_ = wire_format(bits, 8)
    assert not format_.unpack(format_.pack(torch.zeros(3, 16)), (3, 16)).any()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.sampled_from([3, 8, 100, 256, 257, 5000, 65536]), rows=st.integers(1, 4))
def test_places_come_back(data, width, rows):
    """As bytes, as pairs of bytes or as a mask: the same places, and never more bytes than any of the three."""
    count = data.draw(st.integers(1, min(width, 200)))
    generator = torch.Generator().manual_seed(count)
    places = torch.stack([torch.randperm(width, generator=generator)[:count].sort().values for _ in range(rows)])
    format_ = Indices(width)
    message = format_.pack(places)
    least = min(count * (1 if width <= 256 else 2), (width + 7) // 8)
    assert message.numel() == format_.nbytes((rows, count)) == rows * least
    assert torch.equal(format_.unpack(message, (rows, count)), places)
