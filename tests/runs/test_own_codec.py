"""docs/codec.md as a user follows it: a codec in a package of one's own becomes an arm."""

import json
import re
from pathlib import Path

import pytest

from testbed.codecs import codec_names
from testbed.config import Preset, load_toml
from testbed.config.arms import arm_named
from testbed.errors import UsageError
from testbed.learn.dry_build import rehearse
from tests.codecs.plugged import install
from tests.runs.tiny import PRESET, TARGET, run_testbed

PAGE = Path(__file__).parents[2] / "docs" / "codec.md"


def test_the_codec_of_the_documentation_runs(tmp_path, monkeypatch):
    """Its bytes are half of exact's, asserted at the sockets; a misspelt name is refused with the known ones."""
    package = tmp_path / "site"
    (package / "my_codecs-1.dist-info").mkdir(parents=True)
    code, entry = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (package / "my_codecs.py").write_text(code)
    (package / "my_codecs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: my-codecs\nVersion: 1\n")
    name, value = re.findall(r'^(\w+) = "(.*)"$', entry, re.MULTILINE)[0]
    (package / "my_codecs-1.dist-info" / "entry_points.txt").write_text(f"[testbed.codecs]\n{name} = {value}\n")
    monkeypatch.setattr("tests.runs.tiny.EXTRA_PATH", str(package))
    options = (
        "emulate",
        "--backend",
        "host",
        "--bw",
        "50mbit",
        "--pace",
        "none",
        "--nodes",
        "2",
        "--steps",
        "2",
        "--preset",
        PRESET,
        "--share",
        "--no-report",
    )
    done = run_testbed(tmp_path, *options, "--arms", "decentralised,halves", "--name", "run")
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]  # 1: a busy machine disturbed a step
    arms = json.loads((tmp_path / "runs" / "run" / "comparison.json").read_text())["arms"]
    sent = {arm["arm"]: arm["kv_payload_bytes_per_step"] for arm in arms}
    assert sent["halves"] == sent["decentralised"] / 2
    wrong = run_testbed(tmp_path, *options, "--arms", "halfs")
    assert wrong.returncode == 2
    assert "halves" in wrong.stderr


SIXTEEN = """
import torch
from testbed.codecs.base import Codec, Encoded

class Sixteen(Codec):
    def wires(self, shape):
        return (self.wire(shape.batch, shape.tokens, 16),)

    def encode(self, key_BTE, value_BTE):
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(key_BTE[..., :16],))

    def decode(self, parts, decoder):
        key_BTE = torch.nn.functional.pad(parts[0], (0, self.kv_width - 16))
        return key_BTE, torch.zeros_like(key_BTE)
"""


def test_a_codec_that_cannot_say_what_it_sends_at_a_target_is_refused(tmp_path, monkeypatch):
    """Before anything is created; without a pace it needs to say nothing."""
    monkeypatch.setattr("tests.runs.tiny.EXTRA_PATH", install(tmp_path / "site", SIXTEEN, sixteen="Sixteen"))
    options = ("emulate", "--bw", "50mbit", "--nodes", "2", "--preset", PRESET, "--target", TARGET, "--share")
    refused = run_testbed(tmp_path, *options, "--arms", "decentralised,sixteen", "--name", "run")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "give Sixteen a ranks_for" in refused.stderr
    assert not (tmp_path / "runs" / "run").exists()


ODD = """
import torch
from testbed.codecs.base import Codec, Encoded, Wire

class Places(Codec):
    def wires(self, shape):
        wire = self.wire(shape.batch, shape.tokens, self.kv_width)
        return tuple(Wire(shape=wire.shape, format=wire.format, returned=False) for _ in range(2))

    def encode(self, key_BTE, value_BTE):
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(key_BTE, value_BTE))

    def decode(self, parts, decoder):
        return parts

class Detached(Codec):
    def wires(self, shape):
        return (self.wire(shape.batch, shape.tokens, 2 * self.kv_width),)

    def encode(self, key_BTE, value_BTE):
        both = torch.cat((key_BTE, value_BTE), dim=-1).detach()
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(both,))

    def decode(self, parts, decoder):
        return parts[0].chunk(2, dim=-1)

class Short(Detached):
    def encode(self, key_BTE, value_BTE):
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(key_BTE,))

class Wrong(Detached):
    def encode(self, key_BTE, value_BTE):
        both = torch.cat((key_BTE, value_BTE), dim=-1)
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(both,))

    def decode(self, parts, decoder):
        raise KeyError("basis")
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("places", "the codec 'places' returns no gradient"),
        ("detached", "the codec 'detached' returns no gradient"),
        ("short", r"there and back: ValueError: Short packs a part of shape \(1, 32, 32\) into \d+ bytes, where"),
        ("wrong", "there and back: KeyError: 'basis'"),
    ],
)
def test_a_codec_that_cannot_make_a_step_is_refused_before_any(tmp_path, monkeypatch, name, said):
    """By the rehearsal, which takes a chunk there and its gradients back; ours all pass it."""
    names = {"places": "Places", "detached": "Detached", "short": "Short", "wrong": "Wrong"}
    monkeypatch.syspath_prepend(install(tmp_path, ODD, **names))
    preset = load_toml(Preset, "presets", PRESET)
    with pytest.raises(UsageError, match=said):
        rehearse(preset, arm_named(name), 2)
    for ours in ("decentralised", *codec_names()):
        if ours not in (*names, "exact"):
            rehearse(preset, arm_named(ours), 2)
