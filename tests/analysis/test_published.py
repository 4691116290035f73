"""Published tables are what the rows that are committed beside them give."""

import json
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pytest

from testbed.analysis.quality.judge import COLUMNS, judge
from testbed.analysis.quality.pages import markdown
from testbed.config import Arm, Preset
from testbed.learn.experiment import Cell, cells_of, load_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
WITH_ROWS = sorted(path.stem for path in EXPERIMENTS.glob("*.csv"))


def page_of(name: str) -> str:
    """The same across more nodes stands on the page of its twin."""
    return (EXPERIMENTS / f"{name.removesuffix('_across')}.md").read_text(encoding="utf-8")


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
    page = page_of(name)
    lines = [line for line in markdown(record).splitlines() if line.startswith("|") or "count" in line]
    assert len(lines) > table["arm"].nunique() >= 4
    for line in lines:
        assert line in page


def differences(was: Any, now: Any, kind: Any = None) -> list[str]:
    """Where settings of today are others than those that were written down; a field that is new must be at its
    default."""
    if not isinstance(was, dict):
        return [] if was == now else [f"{was!r} was {now!r}"]
    types = get_type_hints(kind) if is_dataclass(kind) else {}
    found = [f"{key} has gone" for key in was.keys() - now.keys()]
    for key in was.keys() & now.keys():
        found += [f"{key}: {each}" for each in differences(was[key], now[key], types.get(key))]
    defaults = {each.name: each.default for each in fields(kind)} if types else {}
    made = {each.name: each.default_factory for each in fields(kind)} if types else {}
    defaults |= {name: factory() for name, factory in made.items() if factory is not MISSING}
    return found + [f"{key} is new" for key in now.keys() - was.keys() if defaults.get(key, MISSING) != now[key]]


def settings_of(cell: Cell) -> dict[str, Any]:
    return {key: value for key, value in cell.asked.items() if key != "seed"}


def compared(was: dict[str, Any], cell: Cell) -> list[str]:
    now = settings_of(cell)
    kinds = {"preset": Preset, "arm": Arm}
    return [each for key in now for each in differences(was[key], now[key], kinds.get(key))]


@pytest.mark.parametrize("name", [name for name in WITH_ROWS if name not in ("nulls", "snapshot")])
def test_rows_say_what_they_were_made_of(name, monkeypatch):
    """Presets and arms are today's; code, versions and commits as they were. (Two pages are older than this.)"""
    monkeypatch.chdir(EXPERIMENTS.parent)
    made = json.loads((EXPERIMENTS / f"{name}.json").read_text(encoding="utf-8"))
    cells = cells_of(load_experiment(str(EXPERIMENTS / f"{name}.toml")))
    there = set(pd.read_csv(EXPERIMENTS / f"{name}.csv")[["preset", "arm"]].itertuples(index=False, name=None))
    for cell in (each for each in cells if (each.preset_name, each.arm.name) in there):
        assert compared(made["settings"][cell.preset_name][cell.arm.name], cell) == [], cell.arm.name
    (code,) = {content["code"] for content in made["content"]}  # texts may differ from preset to preset
    assert len(code) == 64
    assert all({"python", "torch", "numpy"} <= content.keys() for content in made["content"])
    page = page_of(name)
    assert all(commit[:7] in page for commit in made["commits"])


def test_other_settings_are_noticed(monkeypatch):
    """Negative control: another number of steps, a codec's rank, a field that has gone or is new and says something."""
    monkeypatch.chdir(EXPERIMENTS.parent)
    cell = cells_of(load_experiment(str(EXPERIMENTS / "frontier.toml")))[4]
    was = settings_of(cell)
    assert compared(was, replace(cell, seed=99)) == []
    assert compared(was, replace(cell, preset=replace(cell.preset, steps=151))) == ["steps: 150 was 151"]
    other = replace(cell.arm, codec=replace(cell.arm.codec, ranks=(15,)))
    assert len(compared(was, replace(cell, arm=other))) == 1
    fewer = was | {"arm": {key: value for key, value in was["arm"].items() if key != "overlap"}}
    assert compared(fewer, cell) == []
    assert compared(fewer, replace(cell, arm=replace(cell.arm, overlap=False))) == ["overlap is new"]
    assert compared(was | {"arm": was["arm"] | {"gone": 1}}, cell) == ["gone has gone"]


def test_there_are_such_pages():
    assert {"nulls", "snapshot", "frontier"} <= set(WITH_ROWS)
