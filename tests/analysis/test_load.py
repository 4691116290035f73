"""The tidy table: what is in it, and that it survives the disk."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testbed.analysis.load import COLUMNS, Comparison, load_comparison, results_table, write_results
from tests.analysis.synthetic import made_up


def _written(folder: Path, mode: str) -> Comparison:
    comparison, summaries = made_up(mode=mode)
    (folder / "comparison.json").write_text(json.dumps(comparison))
    return write_results(folder, comparison, summaries)


@pytest.mark.parametrize("mode", ["composed", "live", "unpaced"])
def test_table_comes_back_as_it_was_written(tmp_path: Path, mode: str) -> None:
    """Parquet gives the same table, types and version; CSV the same numbers."""
    written = _written(tmp_path, mode)
    read = load_comparison(tmp_path)
    pd.testing.assert_frame_equal(read.table, written.table)
    assert tuple(read.table.columns) == COLUMNS
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(read.table) == 5 * 250


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("composed", {"centralised": "modelled", "latent": "composed"}),
        ("live", {"centralised": "modelled", "latent": "measured"}),
        ("unpaced", {"centralised": "measured", "latent": "measured"}),
    ],
)
def test_times_say_how_they_came_about(mode: str, kinds: dict[str, str]) -> None:
    """A modelled link is never called measured, nor a composed run."""
    comparison, summaries = made_up(mode=mode)
    table = results_table(comparison, summaries)
    for arm, kind in kinds.items():
        assert set(table.loc[table["arm"] == arm, "time_kind"]) == {kind}


def test_composed_time_counts_the_syncs_and_not_the_warm_start() -> None:
    """250 steps of 62 s and 5 events of 85.4 s; the warm start is a figure of its own."""
    comparison, summaries = made_up()
    table = results_table(comparison, summaries)
    steps = [step["step_seconds"] for step in summaries["decentralised"]["timed"]["steps"]]
    end = table.loc[table["arm"] == "decentralised", "time_seconds"].max()
    assert end == pytest.approx(250 * np.mean(steps) + 5 * 85.4)


def test_invalid_steps_do_not_count() -> None:
    """A step whose window was overrun leaves the clock as it was."""
    comparison, summaries = made_up()
    before = results_table(comparison, summaries)
    summaries["latent"]["timed"]["steps"].append({"step": 5, "step_seconds": 99.0, "valid": False, "why": ["late"]})
    pd.testing.assert_frame_equal(before, results_table(comparison, summaries))


def test_failed_arms_leave_gaps_not_errors() -> None:
    """No summary: no rows. No timed steps: no times, but losses."""
    comparison, summaries = made_up()
    del summaries["control"]
    summaries["latent"]["timed"] = {}
    table = results_table(comparison, summaries)
    assert "control" not in set(table["arm"])
    latent = table[table["arm"] == "latent"]
    assert latent["time_seconds"].isna().all()
    assert latent["loss"].notna().all()
    assert list(results_table(comparison, {}).columns) == list(COLUMNS)


def test_a_validation_before_the_first_step_stands_at_time_zero() -> None:
    """Step 0 has no training loss and no time passed."""
    comparison, summaries = made_up()
    summaries["latent"]["learned"]["validations"].insert(0, {"step": 0, "val_loss": 2.95})
    table = results_table(comparison, summaries)
    first = table[table["arm"] == "latent"].iloc[0]
    assert (first["step"], first["time_seconds"], first["val_loss"]) == (0, 0.0, 2.95)
    assert np.isnan(first["loss"])


def test_other_versions_and_unfinished_runs_are_refused(tmp_path: Path) -> None:
    """One sentence each: nothing there, cut off, another version."""
    with pytest.raises(ValueError, match="no finished comparison"):
        load_comparison(tmp_path)
    _written(tmp_path, "composed")
    source = tmp_path / "comparison.json"
    text = source.read_text()
    source.write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ValueError, match="schema version 2"):
        load_comparison(tmp_path)
    source.write_text(text[:100])
    with pytest.raises(ValueError, match="not valid JSON"):
        load_comparison(tmp_path)
