"""`testbed diff`: a run beside a copy of itself, and beside one that differs in known things."""

import json
import shutil
from pathlib import Path

import pytest

from tests.runs.tiny import run_testbed
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]


def change(file: Path, **values: object) -> None:
    """These keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def pair(composed, tmp_path):
    """A run and its copy, in a folder in which one can type."""
    for name in ("first", "second"):
        shutil.copytree(composed, tmp_path / "runs" / name)
    return tmp_path


def test_a_copy_differs_in_nothing(pair):
    done = run_testbed(pair, "diff", "first", "second")
    assert done.returncode == 0, done.stderr
    assert "Settings, code, data and machine are the same." in done.stdout
    record = json.loads((pair / "runs" / "first" / "comparison.json").read_text())
    number = len(record["arms"])
    assert f"the same to the last bit in {number} of {number} arms" in done.stdout
    assert "differ by no more than their 95 % intervals" in done.stdout


def test_what_differs_is_said_with_both_values(pair):
    """A setting, an arm's codec, the commit, a package, the processor; a time, a loss, an arm that one has not."""
    second = pair / "runs" / "second"
    asked, record = (json.loads((second / name).read_text()) for name in ("config.json", "comparison.json"))
    asked["preset"]["model"]["width"] = 4096
    asked["arms"][0]["codec"]["wire"] = "fp32"
    (second / "config.json").write_text(json.dumps(asked))
    exact, *_, gone = record["arms"]
    exact["step_seconds_mean"] *= 1.5
    exact["final_val_loss"] += 0.25
    record["arms"].remove(gone)
    (second / "comparison.json").write_text(json.dumps(record))
    machine = json.loads((second / exact["arm"] / "environment.json").read_text())
    packages = machine["packages"] | {"torch": "0.0"}
    change(second / exact["arm"] / "environment.json", commit="abc", cpu="[bold]one[/bold]", packages=packages)
    done = run_testbed(pair, "diff", "first", "runs/second", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    other = {each["what"]: each["other"] for each in found["differences"]}
    assert other == {
        "preset.model.width": 4096,
        f"arms.{asked['arms'][0]['name']}.codec.wire": "fp32",
        "commit": "abc",
        "packages.torch": "0.0",
        "cpu": "[bold]one[/bold]",
    }
    assert found["arms"][gone["arm"]][1] is None
    said = " ".join(run_testbed(pair, "diff", "first", "second").stdout.split())
    assert "[bold]one[/bold]" in said
    assert "+50 %" in said
    assert "+0.250" in said
    assert f"differ by more than their 95 % intervals in: {exact['arm']}" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("first",), "The one to set beside it"),
        (("first", "secund"), "second"),
        (("first", "unfinished"), "holds no finished comparison"),
        (("first", "broken"), "no key 'arms.0.arm'"),
    ],
)
def test_bad_input_is_one_sentence(pair, words, said):
    (pair / "runs" / "unfinished").mkdir()
    shutil.copytree(pair / "runs" / "first", pair / "runs" / "broken")
    change(pair / "runs" / "broken" / "comparison.json", arms=[{"name": 1}])
    done = run_testbed(pair, "diff", *words)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("times", "said"), [(0.9, "by no more than their 95 % intervals"), (1.1, "by more than their 95 % intervals in: ")]
)
def test_times_differ_where_their_intervals_do_not_touch(pair, times, said):
    """By nine tenths, and by eleven tenths, of both intervals together."""
    file = pair / "runs" / "second" / "comparison.json"
    record = json.loads(file.read_text())
    arm = next(arm for arm in record["arms"] if arm["step_seconds_ci95"])
    arm["step_seconds_mean"] += times * 2 * arm["step_seconds_ci95"]
    file.write_text(json.dumps(record))
    assert said in " ".join(run_testbed(pair, "diff", "first", "second").stdout.split())


def test_links_are_compared_and_what_has_no_interval_is_not_said_to_differ(pair):
    """Rate, delay and framing stand in the record, not among the settings; a time of one step has no interval."""
    file = pair / "runs" / "second" / "comparison.json"
    record = json.loads(file.read_text())
    record |= {"bandwidth_bps": 2 * record["bandwidth_bps"], "delay_seconds": 0.05, "framing": "ethernet"}
    for arm in record["arms"]:
        arm |= {"step_seconds_ci95": None, "step_seconds_mean": 2 * arm["step_seconds_mean"]}
    file.write_text(json.dumps(record))
    said = " ".join(run_testbed(pair, "diff", "first", "second").stdout.split())
    assert all(what in said for what in ("bandwidth_bps", "delay_seconds", "framing", "where both have one"))
