"""The rows of a sweep's table as facts, for whoever writes them down in words."""

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
from pydantic import JsonValue

from testbed.analysis.sweep.results import Sweep

__all__ = ["CellRow", "rows_of"]


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """An arm at a point with one seed; None: it is not known. Units stand in names, as in the table's columns."""

    cell: str
    arm: str
    seed: int
    point: str
    varied: dict[str, JsonValue]
    """What was varied, as it was typed."""
    state: str
    why: str | None
    older: str | None
    link: str | None
    rate_bps: float | None
    rate_measured_bps: float | None
    one_way_delay_seconds: float | None
    step_seconds_mean: float | None
    step_seconds_ci95: float | None
    ci95_from: str | None
    steps_timed: int | None
    speedup: float | None
    speedup_half: float | None
    resolved: bool | None
    tokens_per_second: float | None
    compute_utilisation: float | None
    val_loss: float | None
    recovered_fraction: float | None
    suspect_steps: int | None
    suspect_syncs: int | None

    @property
    def marks(self) -> list[str]:
        """What a reader must know of a cell that is done, in a word each."""
        suspect = any(count for count in (self.suspect_steps, self.suspect_syncs))
        return ["suspect"] * suspect + ["older"] * bool(self.older)


_COLUMNS = [field.name for field in dataclasses.fields(CellRow) if field.name != "varied"]


def rows_of(sweep: Sweep, table: pd.DataFrame | None = None) -> list[CellRow]:
    """Of the whole table, or of some of its rows, in its order."""
    part = sweep.table if table is None else table
    known = part.astype(object).where(part.notna(), None).to_dict("records")  # pyrefly: ignore
    return [
        CellRow(
            varied={key: row[key] for key in sweep.record.varied},
            **{name: row[name] for name in _COLUMNS},
        )
        for row in cast("list[dict[str, Any]]", known)
    ]
