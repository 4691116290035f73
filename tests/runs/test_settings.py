"""What `testbed emulate` is asked for, before anything is created: what a paced run has no closed form for."""

from pathlib import Path
from typing import Any

import pytest

from testbed.config import STANDARD_ARMS
from testbed.errors import UsageError
from testbed.settings.emulate import Request, Settings, resolve
from tests.runs.tiny import PRESET

ARM = 'name = "own"\nexchange = "all-gather"\nsync = "average"\nlink = "bw"\n'
CODEC = ARM + '[codec]\nname = "subspace"\n[codec.subspace]\n'


def resolved(folder: Path, arm: str, *, preset: str = "", **asked: Any) -> Settings:
    """With an arm and what is added to the preset `quick`, both as files."""
    (folder / "own.toml").write_text(arm)
    quick = (Path(PRESET).parents[2] / "experiments/presets/quick.toml").read_text(encoding="utf-8")
    (folder / "preset.toml").write_text(preset + quick)
    request = Request(bw="300mbit", preset=str(folder / "preset.toml"), arms=str(folder / "own.toml"), **asked)
    return resolve(request, command="")


@pytest.mark.parametrize(
    ("arm", "preset", "named"),
    [
        (ARM.replace("all-gather", "ring"), "", "for ring"),
        (ARM.replace("average", "gradients") + 'first_layer = "ids"\n', "", "for first_layer = 'ids'"),
        (ARM + 'layout = "zigzag"\n', "", "for layout = 'zigzag'"),
        (ARM + "interleave = true\n", "", "for interleave"),
        (ARM, "accumulate = 2\n", "for accumulate = 2"),
        (CODEC + 'unplug = "literal"\nunplug_at = 0.5\n', "", "for unplug = 'literal'"),
    ],
)
def test_what_a_paced_run_does_not_know_is_refused(tmp_path, monkeypatch, arm, preset, named):
    """With what to type; without a pace it is taken."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{named} add PACE=none"):
        resolved(tmp_path, arm, preset=preset)
    with pytest.raises(UsageError, match=f"{named} add PACE=none"):
        resolved(tmp_path, arm, preset=preset, live="2min")
    assert resolved(tmp_path, arm, preset=preset, pace="none").mode == "unpaced"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arm", [ARM, CODEC, CODEC + "unplug_at = 0.5\n", CODEC + 'unplug = "literal"\n'])
def test_what_a_paced_run_knows_is_taken(tmp_path, arm):
    """Folded, a codec goes on sending as much; and one that is never unplugged always does."""
    assert resolved(tmp_path, arm).mode == "composed"


def test_the_arms_of_a_comparison_are_all_known():
    arms = resolve(Request(bw="300mbit"), command="").arms
    assert tuple(arm.name for arm in arms) == STANDARD_ARMS


def test_more_layers_of_ids_than_there_are_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arm = ARM.replace("all-gather", "ids") + "[ids]\nlayers = {}\n"
    with pytest.raises(UsageError, match=r"ids.layers = 9: the model has 2; type 0 for all"):
        resolved(tmp_path, arm.format(9), pace="none")
    assert resolved(tmp_path, arm.format(2), pace="none").arms[0].ids.depth(2) == 2
