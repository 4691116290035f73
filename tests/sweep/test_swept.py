"""What `testbed sweep` leaves, and that it goes on from there."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from tests.runs.test_kill import family, first_process
from tests.runs.tiny import command, environment, run_testbed
from tests.sweep.tiny import ARMS, POINTS, grid, summaries, sweep_till_done, valid
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]
SAME = ["arm", "seed", "bw", "state", "val_loss", "steps", "kv_payload_bytes_per_step"]
"""Of every run of the same sweep, whatever its times."""


def test_every_cell_is_learned_once_timed_once_and_composed(swept):
    """A row per cell and seed; seconds as bytes and compute ask for; the same clock for every seed."""
    place = swept
    folder = place / "runs" / "grid"
    table = pd.read_parquet(folder / "results.parquet")
    assert len(table) == len(POINTS) * len(ARMS) * 2
    assert set(table["state"]) == {"done"}
    assert len(list((folder / "learned").iterdir())) == len(ARMS) * 2
    assert len(summaries(folder)) == len(POINTS) * len(ARMS) + 1
    assert table["val_loss"].groupby([table["arm"], table["seed"]]).nunique().eq(1).all()
    exact = table[table["arm"] == "decentralised"]
    # beside other work; half the rate would be 1.5 and more
    assert (exact["step_seconds_mean"] / exact["closed_form_step_seconds"]).between(0.9, 1.35).all()
    curves = pd.read_parquet(folder / "curves.parquet")
    assert curves.groupby(["cell", "step"])["time_seconds"].nunique().eq(1).all()
    assert set(curves["time_kind"]) == {"composed"}
    (check,) = json.loads((folder / "sweep.json").read_text())["checks"]
    assert (check["arm"], check["point"], check["state"], check["link"]) == ("subspace", "bw 80mbit", "done", "shaped")
    assert abs(check["difference"]) < 0.15
    assert "Checked by training it on 2 nodes: subspace at bw 80mbit" in (place / "stdout.txt").read_text()
    for cell in summaries(folder):
        evidence = json.loads((folder / "cells" / cell / "link" / "measured.json").read_text())
        assert {"before", "after"} <= set(evidence)


def test_what_is_there_is_not_run_again(swept):
    """The same command shows the same table, and touches no cell."""
    place = swept
    folder = place / "runs" / "grid"
    before, table = summaries(folder), pd.read_parquet(folder / "results.parquet")
    again = run_testbed(place, "sweep", "grid.toml")
    assert again.returncode == 0
    assert summaries(folder) == before
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results.parquet"), table)
    first = (place / "stdout.txt").read_text()
    assert again.stdout[again.stdout.index("A tiny grid") :] == first[first.index("A tiny grid") :]


def test_a_changed_configuration_is_another_cell_and_a_renamed_arm_the_same(swept):
    """As a dry run says it, which does nothing."""
    place = swept
    file = grid(place, name="other.toml")
    text = file.read_text().replace(
        json.dumps(list(ARMS)), '["decentralised", "subspace", "control", {name = "nothing", like = "control"}]'
    )
    file.write_text(text.replace('"80mbit"', '"90mbit"'))
    done = run_testbed(place, "sweep", "other.toml", "--name", "grid", "--dry-run")
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    state = {what: there for there, _, what in lines if there in ("there", "missing")}
    assert state["control at bw 40mbit"] == state["nothing at bw 40mbit"] == "there", done.stdout
    assert state["control at bw 90mbit"] == "missing"


def test_cells_that_have_read_another_text_are_left_aside_or_kept_and_marked(swept, tmp_path, monkeypatch):
    """The same command where the standard library is another: nothing is there, unless --keep-older is typed."""
    shutil.copytree(swept, tmp_path / "place")
    place, text = tmp_path / "place", tmp_path / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.py").write_text(f"another = {number}\n" * 200)
    monkeypatch.setenv("TESTBED_STDLIB", str(text))
    aside = run_testbed(place, "sweep", "grid.toml", "--dry-run")
    assert "there  " not in aside.stdout
    assert "of another state (data) and left aside: --keep-older" in aside.stdout
    kept = run_testbed(place, "sweep", "grid.toml", "--keep-older", "--no-report")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "are of another state and were kept: time of other data; loss of other data (marked older)" in kept.stdout
    table = pd.read_parquet(place / "runs" / "grid" / "results.parquet")
    assert set(table["older"]) == {"time of other data; loss of other data"}
    assert table["val_loss"].equals(pd.read_parquet(swept / "runs" / "grid" / "results.parquet")["val_loss"])


KILLS = [
    ("to learn after", "driver"),
    ("to learn after", "testbed.learn.worker"),
    ("to time, about", "driver"),
    ("to time, about", "testbed.sweep.worker"),
    ("to time, about", "testbed.driver.rank"),
    ("to time, about", "first process"),
    ("s a step", "driver"),
]
"""The line after which it dies: learning, proving and timing, between two cells; and who: a process by its program."""


def pid_of(victim: str, process: subprocess.Popen[str], mark: str) -> int:
    """As soon as it is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if victim == "driver":
            return process.pid
        with suppress(AssertionError, OSError):
            if victim == "first process":
                return first_process(mark)
            for pid in family(mark):
                if victim in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    return pid
        time.sleep(0.02)
    raise AssertionError(f"there was no {victim} within a minute")


@pytest.mark.acceptance
@pytest.mark.parametrize(("line", "victim"), KILLS)
def test_killed_it_goes_on_and_loses_nothing_that_was_done(swept, tmp_path, line, victim):
    """kill -9 in each phase: nothing is left, what was finished is not redone, and what is learned is the same to the
    last digit."""
    arms = ("decentralised", "control")
    grid(tmp_path, seeds=(0,), arms=arms)
    mark = f"sweep-kill-{KILLS.index((line, victim))}-{os.getpid()}"
    process = subprocess.Popen(
        command("sweep", "grid.toml", "--no-report"),
        cwd=tmp_path, env=environment(mark), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    folder = tmp_path / "runs" / "grid"
    assert process.stdout is not None
    with process.stdout:
        assert any(line in said for said in process.stdout), f"it ended before it said: {line}"
        os.kill(pid_of(victim, process, mark), signal.SIGKILL)
        there, kept = summaries(folder), valid(folder)
        said = process.stdout.read()
        process.wait(300)
    assert "Traceback" not in said
    if victim == "driver":
        assert len(there) < len(POINTS) * len(arms)
    else:
        assert "FAILED" in said
    gone = time.monotonic() + 10
    while family(mark) and time.monotonic() < gone:
        time.sleep(0.1)
    assert family(mark) == []
    again = sweep_till_done(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {cell: there[cell] for cell in kept}.items() <= summaries(folder).items()
    mine = pd.read_parquet(folder / "results.parquet")
    whole = pd.read_parquet(swept / "runs" / "grid" / "results.parquet")
    whole = whole[whole["arm"].isin(arms) & (whole["seed"] == 0)].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine[SAME], whole[SAME])
