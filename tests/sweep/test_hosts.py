"""A sweep on the hosts of a real Ray, which is started here, on loopback."""

import pandas as pd
import pytest

from tests.runs.tiny import run_testbed
from tests.sweep.test_sweep import grid, summaries
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]


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
