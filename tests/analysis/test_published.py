"""Published tables are what the rows that are committed beside them give."""

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


def test_there_are_such_pages():
    assert "nulls" in WITH_ROWS
