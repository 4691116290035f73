"""recent: the newest tokens of a chunk, exact."""

import pytest
import torch

from testbed.codecs import Codec, Shape, make_codec
from testbed.config import CodecConfig
from tests.codecs.started import chunk, started


def kept(codec: Codec, shape: Shape) -> list[int]:
    """Which tokens travel."""
    places = codec.kept(shape)
    assert places is not None
    return places.tolist()


def test_the_newest_tokens_travel_as_they_are():
    """The last three of ten, ascending; the own chunk is whole."""
    codec, (key, value) = started(CodecConfig(name="recent", fraction=0.3)), chunk(tokens=10)
    assert kept(codec, Shape(batch=2, tokens=10)) == [7, 8, 9]
    encoded = codec.encode(key, value)
    assert torch.equal(encoded.key_BTE, key)
    k_seen, v_seen = codec.decode(encoded.parts, ())
    assert torch.equal(k_seen, key[:, 7:])
    assert torch.equal(v_seen, value[:, 7:])


@pytest.mark.parametrize("tokens", [256, 1024, 16384])
def test_it_costs_what_best_costs(tokens):
    """The null is matched in bytes: by default exactly those of `best`, both ways."""
    shape = Shape(batch=2, tokens=tokens)
    with torch.device("meta"):
        best, recent = (make_codec(CodecConfig(name=name), 128, layer=0, seed=0) for name in ("best", "recent"))
    for direction in ("forward", "backward"):
        assert recent.payload(shape, direction) == best.payload(shape, direction)


def test_at_least_one_token_travels():
    """A chunk of eight keeps one, though 9/256 of it is less."""
    assert kept(started(CodecConfig(name="recent")), Shape(batch=1, tokens=8)) == [7]


def test_four_bits_buy_more_tokens():
    """At a quarter of the bytes per token, nearly four times the tokens for the same."""
    shape = Shape(batch=1, tokens=256)
    exact = started(CodecConfig(name="recent"), width=128)
    four = started(CodecConfig(name="recent+int4", fraction=32 / 256), width=128)
    assert four.payload(shape) == exact.payload(shape)
    assert len(kept(four, shape)) == 32 > len(kept(exact, shape)) == 9
