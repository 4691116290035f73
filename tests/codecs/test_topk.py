"""topk: the largest numbers of each token and where they stood."""

import pytest
import torch

from testbed.codecs import Shape, make_codec
from testbed.config import CodecConfig
from testbed.errors import UsageError
from tests.codecs.started import WIDTH, chunk, floating, started


@pytest.mark.parametrize(
    ("width", "fraction", "values", "places"),
    [
        (128, None, 26, 26),  # 256 places: a byte each, less than a mask of 32
        (128, 0.2, 51, 32),  # a mask of 256 bits
        (2048, None, 410, 512),  # a mask of 4096 bits, less than 2 · 410
        (2048, 0.02, 82, 164),  # two bytes each, less than the mask
    ],
)
def test_bytes_of_places(width, fraction, values, places):
    """Values in bf16 and the smallest of three ways to write their places; only values have a way back."""
    codec = make_codec(CodecConfig(name="topk", fraction=fraction), width, layer=0, seed=0)
    assert codec.payload(Shape(batch=1, tokens=1)) == {"kv": 2 * values + places}
    assert codec.payload(Shape(batch=3, tokens=5), "backward") == {"kv": 15 * 2 * values}


def test_the_largest_numbers_travel():
    """Of K and V together, by magnitude; the rest is zero, and what came is where it stood."""
    codec, (key, value) = started(CodecConfig(name="topk", fraction=0.25)), chunk()
    k_seen, v_seen = codec.decode(codec.encode(key, value).parts, ())
    exact, seen = torch.cat((key, value), -1), torch.cat((k_seen, v_seen), -1)
    came = seen != 0
    assert (came.sum(-1) == WIDTH // 2).all()
    assert torch.equal(seen[came], exact[came])
    least = seen.abs().where(came, torch.inf).amin(-1)
    assert (exact.abs().where(~came, 0.0).amax(-1) <= least).all()


def test_what_did_not_travel_has_no_gradient():
    """The adjoint puts gradients where the numbers stood."""
    codec = started(floating(CodecConfig(name="topk", fraction=0.25)), dtype=torch.float64)
    key, value = (z.requires_grad_() for z in chunk(dtype=torch.float64))
    k_seen, v_seen = codec.decode(codec.encode(key, value).parts, ())
    (k_seen.sum() + v_seen.sum()).backward()
    assert key.grad is not None
    assert value.grad is not None
    assert torch.equal(key.grad, (k_seen != 0).double())
    assert torch.equal(value.grad, (v_seen != 0).double())


def test_all_of_them_is_exact():
    """fraction = 1 leaves nothing out, and the places are a mask."""
    codec, (key, value) = started(CodecConfig(name="topk", fraction=1.0)), chunk()
    assert torch.equal(codec.decode(codec.encode(key, value).parts, ())[0], key)
    assert codec.payload(Shape(batch=1, tokens=1)) == {"kv": 2 * WIDTH * 2 + 2 * WIDTH // 8}


def test_places_fit_sixteen_bits():
    """A wider K and V is refused in a sentence."""
    with torch.device("meta"), pytest.raises(UsageError, match="16 bits"):
        make_codec(CodecConfig(name="topk"), 2**15 + 1, layer=0, seed=0)
