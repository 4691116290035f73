"""What was composed, held against the same trained step by step on its link."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from testbed.analysis.comparison.load import arm_table
from testbed.formats import percent, significant, trimmed
from testbed.records import CellSummary, CheckRow, SweepConfig, read_record

__all__ = ["check_rows", "check_sentence", "trained_curves"]


def check_rows(
    folder: Path, config: SweepConfig, failed: dict[str, str], table: pd.DataFrame, curves: pd.DataFrame
) -> list[CheckRow]:
    """A row per check: seconds to the end of its last step, as trained and as composed."""
    rows = []
    for check in config.checks:
        twin = table[(table["cell"] == check.of) & (table["seed"] == check.seed)].iloc[0]
        row, summary = CheckRow(**vars(check)), _summary(folder, check.cell)
        if check.cell in failed:
            row = replace(row, state="failed", why=failed[check.cell])
        elif summary is not None:
            row = _trained(row, summary, twin, curves)
        rows.append(row)
    return rows


def _trained(row: CheckRow, summary: CellSummary, twin: pd.Series, curves: pd.DataFrame) -> CheckRow:
    known = curves[(curves["cell"] == row.of) & (curves["seed"] == row.seed)]
    composed = known.loc[known["step"] == row.steps, "time_seconds"]
    trained = summary.timed.steps[-1].time_seconds
    row = replace(
        row,
        state="done" if summary.valid else "invalid",
        why="; ".join(summary.why),
        link=summary.link,
        nodes=summary.network.nodes,
        trained_seconds=trained,
        val_loss=summary.final_val_loss,
    )
    if twin["state"] != "done" or not len(composed) or trained is None:
        return replace(row, state="invalid", why=f"what was timed is {twin['state']}: nothing can be held against it")
    seconds = float(composed.iloc[0])
    return replace(row, composed_seconds=seconds, difference=seconds / trained - 1)


def check_sentence(row: CheckRow) -> str:
    """What a check showed."""
    what = f"{row.arm} at {row.point}, {trimmed(row.steps)} steps with seed {row.seed}"
    if row.difference is None:
        return f"Check {row.state}: {what}" + (f": {row.why.splitlines()[0]}" if row.why else "") + "."
    text = (
        f"Checked by training it on {row.nodes} nodes: {what}, took {significant(row.trained_seconds, 4)} s, "
        f"composed {significant(row.composed_seconds, 4)} s ({percent(row.difference, signed=True)}), with the "
        "same losses"
    )
    text += " (the link was waited for, not carried)" if row.link == "modelled" else ""
    return text + (f"; INVALID: {row.why}." if row.state == "invalid" else ".")


def trained_curves(folder: Path, rows: Sequence[CheckRow], table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The curves, those of cells that were trained to the end as they were trained."""
    for row in rows:
        twin = table[(table["cell"] == row.of) & (table["seed"] == row.seed)].iloc[0]
        if row.state != "done" or row.steps != twin["steps"]:
            continue
        summary = _summary(folder, row.cell)
        assert summary is not None
        part = arm_table(summary.network, replace(summary, arm=row.arm))
        same = (curves["cell"] == row.of) & (curves["seed"] == row.seed) & (curves["arm"] == row.arm)
        part = part.assign(cell=row.of, seed=row.seed)[curves.columns]
        curves = pd.concat([curves[~same], part], ignore_index=True)
    return curves


def _summary(folder: Path, cell: str) -> CellSummary | None:
    file = folder / "cells" / cell / "summary.json"
    return read_record(CellSummary, file) if file.is_file() else None
