"""Published tables are what the rows that are committed beside them give."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from testbed.analysis.quality import COLUMNS, judge
from testbed.analysis.quality_pages import markdown
from testbed.runs.experiment import cells_of, load_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
WITH_ROWS = sorted(path.stem for path in EXPERIMENTS.glob("*.csv"))


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_page_has_the_table_that_its_rows_give(name, monkeypatch):
    """Every line of it, and no row of an arm, preset or seed that the experiment does not name."""
    monkeypatch.chdir(EXPERIMENTS.parent)
    experiment = load_experiment(str(EXPERIMENTS / f"{name}.toml"))
    table = pd.read_csv(EXPERIMENTS / f"{name}.csv")
    assert tuple(table.columns) == COLUMNS
    there = set(table[["preset", "arm", "seed"]].itertuples(index=False, name=None))
    assert there <= {(cell.preset_name, cell.arm.name, cell.seed) for cell in cells_of(experiment)}
    record = judge(table, **experiment.judgement, asked=len(there))
    page = (EXPERIMENTS / f"{name}.md").read_text(encoding="utf-8")
    lines = [line for line in markdown(record).splitlines() if line.startswith("|") or "count" in line]
    assert len(lines) > 10
    for line in lines:
        assert line in page


@pytest.mark.parametrize("name", [name for name in WITH_ROWS if name not in ("nulls", "snapshot")])
def test_rows_say_what_they_were_made_of(name, monkeypatch):
    """Of presets and arms as they are today, by hash; of code, versions and commits as they were. (Two pages are older
    than this.)"""
    monkeypatch.chdir(EXPERIMENTS.parent)
    made = json.loads((EXPERIMENTS / f"{name}.json").read_text(encoding="utf-8"))
    cells = cells_of(load_experiment(str(EXPERIMENTS / f"{name}.toml")))
    for cell in cells:
        assert made["settings_sha256"][cell.preset_name][cell.arm.name] == cell.settings_sha256, cell.arm.name
    changed = replace(cells[0], preset=replace(cells[0].preset, steps=cells[0].preset.steps + 1))
    assert changed.settings_sha256 != cells[0].settings_sha256
    assert replace(cells[0], seed=99).settings_sha256 == cells[0].settings_sha256
    (content,) = made["content"]
    assert len(content["code"]) == 64
    assert {"python", "torch", "numpy"} <= content.keys()
    page = (EXPERIMENTS / f"{name}.md").read_text(encoding="utf-8")
    assert all(commit[:7] in page for commit in made["commits"])


def test_there_are_such_pages():
    assert {"nulls", "snapshot", "frontier"} <= set(WITH_ROWS)
