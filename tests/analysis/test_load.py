"""The tidy table: what is in it, and that it survives the disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testbed.analysis.comparison.load import COLUMNS, Comparison, load_comparison, results_table, write_results
from testbed.errors import UsageError
from testbed.records import TimedSeries, Validation, write_json
from tests.analysis.synthetic import Mode, made_up, step_record


def _written(folder: Path, mode: Mode) -> Comparison:
    comparison, summaries = made_up(mode=mode)
    write_json(folder / "comparison.json", comparison)
    return write_results(folder, comparison, summaries)


@pytest.mark.parametrize("mode", ["composed", "live", "unpaced"])
def test_table_comes_back_as_it_was_written(tmp_path: Path, mode: Mode) -> None:
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
def test_times_say_how_they_came_about(mode: Mode, kinds: dict[str, str]) -> None:
    """A modelled link is never called measured, nor a composed run."""
    comparison, summaries = made_up(mode=mode)
    table = results_table(comparison, summaries)
    for arm, kind in kinds.items():
        assert set(table.loc[table["arm"] == arm, "time_kind"]) == {kind}


def test_composed_time_counts_the_syncs_and_not_the_warm_start() -> None:
    """250 steps of 62 s and 5 events of 85.4 s; the warm start is a figure of its own."""
    comparison, summaries = made_up()
    table = results_table(comparison, summaries)
    steps = [step.step_seconds for step in summaries["decentralised"].timed.steps]
    end = table.loc[table["arm"] == "decentralised", "time_seconds"].max()
    assert end == pytest.approx(250 * np.mean(steps) + 5 * 85.4)


def test_the_band_of_a_composed_time_is_a_valid_steps() -> None:
    """Where a single step is valid, its exchanges say how sure its time is, not those of the invalid one before it."""
    comparison, summaries = made_up()
    bad = replace(step_record(0, 99.0, valid=False, why=("late",)), unsure_seconds=50.0)
    good = replace(step_record(1, 5.0), unsure_seconds=0.1)
    summaries["latent"] = replace(summaries["latent"], timed=replace(summaries["latent"].timed, steps=(bad, good)))
    table = results_table(comparison, summaries)
    last = table[table["arm"] == "latent"].sort_values("step").iloc[-1]
    assert 0 < last["time_high"] - last["time_low"] < 2 * 50.0 * 250 / 10


def test_invalid_steps_do_not_count() -> None:
    """A step whose window was overrun leaves the clock as it was."""
    comparison, summaries = made_up()
    before = results_table(comparison, summaries)
    timed = summaries["latent"].timed
    late = step_record(5, 99.0, valid=False, why=("late",))
    summaries["latent"] = replace(summaries["latent"], timed=replace(timed, steps=(*timed.steps, late)))
    pd.testing.assert_frame_equal(before, results_table(comparison, summaries))


def test_failed_arms_leave_gaps_not_errors() -> None:
    """No summary: no rows. No timed steps: no times, but losses."""
    comparison, summaries = made_up()
    del summaries["control"]
    summaries["latent"] = replace(summaries["latent"], timed=TimedSeries())
    table = results_table(comparison, summaries)
    assert "control" not in set(table["arm"])
    latent = table[table["arm"] == "latent"]
    assert latent["time_seconds"].isna().all()
    assert latent["loss"].notna().all()
    assert list(results_table(comparison, {}).columns) == list(COLUMNS)


def test_a_validation_before_the_first_step_stands_at_time_zero() -> None:
    """Step 0 has no training loss and no time passed."""
    comparison, summaries = made_up()
    learned = summaries["latent"].learned
    first = Validation(step=0, val_loss=2.95)
    learned = replace(learned, validations=(first, *learned.validations))
    summaries["latent"] = replace(summaries["latent"], learned=learned)
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
    source.write_text(text)
    (tmp_path / "results.parquet").write_bytes(b"")
    with pytest.raises(UsageError, match=r"results.parquet cannot be read \(.*it is damaged"):
        load_comparison(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"step_seconds_mean"', '"step_second_mean"', "unknown key 'arms.0.step_second_mean'|no key 'arms.0.step_sec"),
        ('"nodes": 4,', "", "no key 'nodes'"),
        ('"link": "modelled"', '"link": "real"', "arms.0.link: Input should be 'shaped'"),
        ('"steps_timed": 5', '"steps_timed": "many"', "arms.0.steps_timed: Input should be a valid integer"),
    ],
)
def test_a_record_with_another_key_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    """With the file, the key, and what to do; nothing that is misspelt reads as "not known"."""
    _written(tmp_path, "composed")
    source = tmp_path / "comparison.json"
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=said) as caught:
        load_comparison(tmp_path)
    assert str(caught.value).startswith(f"{source} is no record of this version of the testbed")
    assert "run it again, or read it with the version that wrote it" in str(caught.value)


def test_a_run_of_before_says_nats_too(tmp_path: Path) -> None:
    """Records once did not hold how far an arm lies above others: it is made of what they hold."""
    written = _written(tmp_path, "composed")
    source = tmp_path / "comparison.json"
    lines = source.read_text().splitlines()
    source.write_text("\n".join(line for line in lines if "val_loss_above_" not in line))
    assert load_comparison(tmp_path).record == written.record
