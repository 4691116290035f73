"""A sweep on the hosts of a real Ray, which is started here, on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.runs.tiny import environment, run_testbed
from tests.sweep.tiny import grid, summaries
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]


@pytest.mark.acceptance
def test_a_ray_runs_the_cells_and_results_come_back(tmp_path):
    """Learned and timed by its worker; every file of a cell is there, and nothing half written."""
    grid(tmp_path, seeds=(0,), arms=("decentralised", "control"), points=("40mbit",))
    done = run_testbed(tmp_path, "sweep", "grid.toml", "--launcher", "ray")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "grid"
    assert set(pd.read_parquet(folder / "results.parquet")["state"]) == {"done"}
    assert len(list((folder / "learned").glob("*.json"))) == 2
    assert len(summaries(folder)) == 2 + 1
    for cell in summaries(folder):
        assert (folder / "cells" / cell / "link" / "measured.json").is_file()
        assert (folder / "cells" / cell / "metrics" / "rank0.jsonl").stat().st_size
    assert list(folder.rglob("*.partial")) == []


def test_an_address_without_a_ray_is_refused(tmp_path):
    """One sentence, status 2."""
    grid(tmp_path)
    done = run_testbed(tmp_path, "sweep", "grid.toml", "--ray-address", "127.0.0.1:1")
    assert (done.returncode, "--launcher ray" in done.stderr) == (2, True)


def on_a_cluster(place: Path, *words: str) -> dict:
    """What `tests.sweep.lost_host` found, typed in that folder: of another, Python would import what lies there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sweep.lost_host", str(place), *words],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_a_lost_host_was_given_goes_to_another(tmp_path):
    """A head and a worker, which is given one order at a time and dies in its first; another worker does both."""
    found = on_a_cluster(tmp_path)
    assert found["said"] == [[1, [{"done": 1}]], [2, [{"done": 2}]]]
    assert (found["at_once"], found["again"], found["in_all"]) == (1, 2, 3)
    for number in (1, 2):
        summary = tmp_path / "out" / "cells" / str(number) / "summary.json"
        assert json.loads(summary.read_text()) == {"answer": number}


def test_a_ray_whose_workers_are_not_for_us_is_refused(tmp_path):
    """A head alone: nobody would ever run a cell."""
    assert "testbed_host" in on_a_cluster(tmp_path, "none")["refused"]


@pytest.mark.acceptance
@pytest.mark.parametrize("mode", ["stranger", "twin"])
def test_a_host_of_other_sources_carries_nothing_out(tmp_path, mode):
    """On a real Ray, whose worker imports another checkout; one that is the same to the last byte does."""
    found = on_a_cluster(tmp_path, mode)
    failed = [message["why"] for message in found["said"] if "failed" in message]
    if mode == "twin":
        assert failed == []
        assert f"{found['cell']}.json" in found["files"]
    else:
        assert len(failed) == 1
        assert "this host has other program" in failed[0]
        assert "install the same commit" in failed[0]
        assert found["files"] == []
