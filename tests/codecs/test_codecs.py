"""How codecs are named, configured and refused."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from testbed.codecs import Shape, codec_names, make_codec
from testbed.codecs.exact import Exact
from testbed.codecs.latent import Latent
from testbed.codecs.subspace import Subspace
from testbed.config import CodecConfig, SubspaceConfig, parse
from testbed.errors import UsageError
from tests.codecs.started import CODECS, HEADS, WIDTH, layers, started, subspace


def make(config: CodecConfig, **place):
    return make_codec(config, 32, layer=0, seed=0, **place)


def test_compressed_payload_at_the_papers_size():
    """At most 3.7 % of the exact bytes of K and V, forward and backward, θ included."""
    shape = Shape(batch=1, tokens=16384)
    configs = (
        CodecConfig(),
        CodecConfig(name="subspace", ranks=(41, 102)),
        CodecConfig(name="latent+int4", ranks=(512,)),
        CodecConfig(name="best"),
    )
    for direction in ("forward", "backward"):
        with torch.device("meta"):
            payloads = [make_codec(c, 2048, layer=0, seed=0).payload(shape, direction) for c in configs]
        exact, paper, latent, best = payloads
        assert exact == {"kv": 134_217_728}
        assert paper == {"kv": 16384 * 143 * 2, "theta": 2 * 4 * 4}
        assert latent == best == {"kv": 16384 * (256 + 32)}
        for compressed in (paper, latent, best):
            assert sum(compressed.values()) <= 0.037 * 134_217_728


@pytest.mark.parametrize(
    ("name", "per_token", "back"),
    [
        ("exact", 4 * WIDTH, None),
        ("int8", 2 * WIDTH * (1 + 2 / 8), None),
        ("topk", 6 * 2 + 2 * WIDTH // 8, 6 * 2),
        ("latent", 6 / 2 + 2, None),
        ("best", WIDTH / 4 / 2 + 2, None),
        ("random", 6 + 2, None),
        ("pca", 5 * 2 + 2 * WIDTH * 5 * 2 / 40, 5 * 2),
        ("recent", 12 / 40 * 4 * WIDTH, None),
        ("subspace", (4 + 8) * 2 + 2 * 4 * 4 / 40, None),
        ("subspace int8", 4 + 2 + 8 + 2 + 2 * 4 * 4 / 40, None),
    ],
)
def test_bytes_per_token_are_those_of_the_documentation(name, per_token, back):
    """The formulas of docs/codec.md, for chunks of 40 tokens."""
    codec, shape = started(CODECS[name]), Shape(batch=3, tokens=40)
    assert sum(codec.payload(shape).values()) == pytest.approx(120 * per_token)
    assert sum(codec.payload(shape, "backward").values()) == pytest.approx(120 * (back or per_token))


@pytest.mark.parametrize(
    ("name", "wire"),
    [("latent", "bf16"), ("latent+int4", "int4"), ("int8", "int8"), ("int4+int4", "int4"), ("best", "int4")],
)
def test_a_name_may_say_the_wire(name, wire):
    """`+` and a wire, or a name that implies one; bf16 where nothing says it."""
    config = CodecConfig(name=name)
    assert config.wire == wire
    assert config.kind == name.partition("+")[0]
    assert CodecConfig(name=name, wire=wire) == config


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "latent+int4", "wire": "int8"}, "wire = 'int8' was given"),
        ({"name": "int8", "wire": "bf16"}, "wire = 'bf16' was given"),
        ({"name": "best", "wire": "int8"}, "wire = 'int8' was given"),
        ({"name": "int8+int4"}, "names another wire"),
        ({"name": "latent+int3"}, "known are fp32, bf16, int8, int4"),
        ({"name": "latent+"}, "known are fp32, bf16, int8, int4"),
        ({"name": "latent+int8+int4"}, "known are fp32, bf16, int8, int4"),
        ({"group": 0}, "at least 1"),
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": 1.5}, "at most 1"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(options, says):
    """A name and a wire that disagree, wires that do not exist, numbers out of range."""
    with pytest.raises(UsageError, match=says) as refusal:
        CodecConfig(**options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "subspace"}, "two ranks, of K and of V, between 1 and 32"),
        ({"name": "subspace", "ranks": (3,)}, "two ranks"),
        ({"name": "subspace", "ranks": (3, 99)}, "between 1 and 32"),
        ({"name": "subspace", "ranks": (0, 6)}, "between 1 and 32"),
        ({"name": "latent"}, "one rank between 1 and 64"),
        ({"name": "latent", "ranks": (65,)}, "between 1 and 64"),
        ({"name": "latent", "ranks": (0,)}, "between 1 and 64"),
        ({"name": "pca", "ranks": (3, 6)}, "one rank"),
        ({"name": "random+int4"}, "one rank"),
        ({"name": "exact", "ranks": (3,)}, "no use for ranks"),
        ({"name": "int8", "fraction": 0.1}, "no use for fraction"),
        ({"name": "latent", "ranks": (3,), "hadamard": True}, "which is of int4, int8"),
        ({"name": "latent", "ranks": (3,), "subspace": SubspaceConfig(generators=2)}, "the table 'subspace'"),
        ({"name": "recent", "own_chunk": "projected"}, "own chunk exact only"),
        ({"name": "int8", "own_chunk": "projected"}, "own chunk exact only"),
        ({"name": "lattent", "ranks": (3,)}, "did you mean latent"),
        ({"name": "lattent+int4", "ranks": (3,)}, "did you mean latent"),
        ({"name": "int2"}, "did you mean int8 or int4|did you mean int4 or int8"),
        ({"name": "zzz"}, "known are best, exact"),
    ],
)
def test_wrong_codecs_are_refused_in_a_sentence(options, says):
    """What was given and what is allowed, or the nearest names."""
    with pytest.raises(UsageError, match=says) as refusal:
        make(CodecConfig(**options))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"name": "subspace", "rank": [3, 6]}, "unknown key 'rank'; did you mean 'ranks'"),
        ({"subspace": {"generator": 2}}, "did you mean 'generators'"),
        ({"subspace": {"theta": "litteral"}}, "subspace.theta"),
        ({"name": "int8", "wire": "int4"}, "was given"),
        ({"wire": "fp64"}, "wire"),
    ],
)
def test_a_file_with_a_mistake_is_refused(data, says):
    """Unknown keys name the nearest; choices are checked; contradictions are the same sentence as in code."""
    with pytest.raises(UsageError, match=says):
        parse(CodecConfig, data, "arm.toml")


@pytest.mark.parametrize("name", CODECS)
def test_a_configuration_comes_back_from_its_record(name):
    """JSON of what was used, read again, is the same configuration."""
    assert parse(CodecConfig, json.loads(json.dumps(asdict(CODECS[name]))), "record") == CODECS[name]


@pytest.mark.parametrize(("wire", "left"), [("int4", "bf16"), ("fp32", "fp32")])
def test_the_final_layer_may_stay_exact(wire, left):
    """In floating point both ways; other layers, and by default the final one, are compressed."""
    config = CodecConfig(name="latent", ranks=(4,), wire=wire, wire_backward="int8", final_layer="exact")
    assert isinstance(make(config), Latent)
    last = make(config, final=True)
    assert isinstance(last, Exact)
    assert (last.config.wire, last.config.wire_backward) == (left, None)
    assert isinstance(make(CodecConfig(name="latent", ranks=(4,)), final=True), Latent)


def test_only_subspace_is_unplugged():
    """Others say so."""
    with pytest.raises(UsageError, match="cannot be unplugged"):
        make(CodecConfig()).unplug(nn.Linear(4, 32), nn.Linear(4, 32))


def test_layers_differ_and_nodes_do_not():
    """The same seed and layer give the same start, to the bit; another layer, or V, has generators of its own."""
    config = subspace(rotation="random")
    first, again = started(config), started(config)
    assert isinstance(first, Subspace)
    for ours, theirs in zip(first.buffers(), again.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    other = make_codec(config, WIDTH, layer=2, seed=3, kv_heads=HEADS)
    assert isinstance(other, Subspace)
    other.start(*layers(), torch.zeros(1, 2 * WIDTH))
    assert torch.equal(other.key.plain, first.key.plain)
    assert not torch.equal(other.key.bases[1], first.key.bases[1])
    assert not torch.equal(first.key.drawn, first.value.drawn)


def test_ours_are_known():
    """The names that the documentation uses."""
    ours = {"best", "exact", "int4", "int8", "latent", "pca", "random", "recent", "subspace", "topk"}
    assert ours <= set(codec_names())
