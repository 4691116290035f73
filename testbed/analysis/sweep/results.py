"""A sweep on disk: from what was learned and what was timed to one tidy table, and back.

results.parquet, .csv   a row per cell and seed
curves.parquet          a row per cell, seed and step: loss against composed time
sweep.json              what was asked, what is there, what failed
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from testbed.analysis.comparison.baselines import CONTROL_ABOVE, recovered
from testbed.analysis.comparison.load import COLUMNS, arm_table
from testbed.analysis.sweep.composed_vs_trained import check_rows, trained_curves
from testbed.errors import UsageError
from testbed.intervals import mean_interval
from testbed.records import (
    CellEntry,
    CellSummary,
    CheckRow,
    CommandEntry,
    CommandSummary,
    Environment,
    LearnedCell,
    LearnedSeries,
    Machine,
    SweepConfig,
    SweepRecord,
    Validation,
    described,
    read_record,
    write_json,
)

__all__ = ["Sweep", "conclude", "conclude_commands", "load_sweep", "sweep_tables"]

T = TypeVar("T", LearnedCell, CellSummary)
Row = dict[str, Any]
"""A row of the table, by column."""
_OF_SUMMARY = (
    "exchange",
    "codec",
    "sync",
    "link",
    "rate_bps",
    "rate_measured_bps",
    "goodput_measured_bps",
    "step_seconds_mean",
    "step_seconds_ci95",
    "ci95_from",
    "steps_timed",
    "layers_timed",
    "layers_of_target",
    "compute_seconds_median",
    "exchange_seconds_median",
    "sync_seconds_each",
    "sync_seconds_per_step",
    "closed_form_step_seconds",
    "kv_payload_bytes_per_step",
    "wire_bytes_per_step",
    "sync_wire_bytes_each",
    "payload_by_channel",
    "invalid_steps",
    "suspect_steps",
    "suspect_syncs",
)
"""Taken over into the table as they stand."""
_OF_NETWORK = ("nodes", "nodes_of_target", "accounting", "preset", "target", "sync_every")
_OF_POINT = ("bandwidth_bps", "one_way_delay_seconds", "packet_loss")
_OF_VALIDATION = ("val_loss", "val_loss_remote", "recall_accuracy_remote")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was asked, and its tables."""

    record: SweepRecord
    table: pd.DataFrame
    """A row per cell and seed; columns carry their units."""
    curves: pd.DataFrame
    """A row per cell, seed and step."""

    @property
    def of_commands(self) -> bool:
        """Whether a user's own command was run, and nothing was trained by us."""
        return self.record.kind == "command"

    @property
    def arms(self) -> list[str]:
        """Names, in the order of the file."""
        return list(dict.fromkeys(self.table["arm"]))


def load_sweep(path: Path | str) -> Sweep:
    """The sweep in the folder `path`; raises `UsageError` with one sentence if it cannot be read."""
    folder = Path(path)
    for name in ("sweep.json", "results.parquet", "curves.parquet"):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} holds no {name}: it is no finished sweep; type testbed sweep again to go on")
    try:
        record = read_record(SweepRecord, folder / "sweep.json")
        tables = [pd.read_parquet(folder / name) for name in ("results.parquet", "curves.parquet")]
    except (ValueError, OSError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"{folder} cannot be read ({said}): type testbed sweep again, which writes it anew") from None
    return Sweep(record=record, table=tables[0], curves=tables[1])


def conclude(folder: Path, failed: dict[str, str]) -> Sweep:
    """Everything that is made of the cells that are there, written; `failed` holds reasons by cell."""
    config = read_record(SweepConfig, folder / "config.json")
    table, curves = sweep_tables(folder, config, failed)
    checks = check_rows(folder, config, failed, table, curves)
    curves = trained_curves(folder, checks, table, curves)
    return _written(folder, config, failed, table, curves, checks)


def conclude_commands(folder: Path, failed: dict[str, str]) -> Sweep:
    """The same of a user's own command: wall time, status, bytes, and what it said, in columns `said_…`."""
    config = read_record(SweepConfig, folder / "config.json")
    rows = [_command_row(entry, folder, failed) for entry in config.commands]
    first = ["cell", "seed", "state", "point", *config.varied, "exit_status", "wall_seconds", "why"]
    table = pd.DataFrame(rows)
    table = table.reindex(columns=list(dict.fromkeys([*first, *table.columns])))
    return _written(folder, config, failed, table, pd.DataFrame(columns=["cell", "seed", *COLUMNS]))


def _command_row(entry: CommandEntry, folder: Path, failed: dict[str, str]) -> Row:
    file = folder / "cells" / entry.cell / "summary.json"
    state = "failed" if entry.cell in failed else "done" if file.is_file() else "missing"
    row: Row = {"cell": entry.cell, "seed": entry.seed, "state": state, **entry.point}
    row |= {"point": described(entry.point), "why": failed.get(entry.cell, "")}
    if state != "done":
        return row
    summary = read_record(CommandSummary, file)
    for kind, counts in (("sent_bytes", summary.sent_bytes), ("received_bytes", summary.received_bytes)):
        row[f"{kind}_mean"] = sum(counts.values()) / len(counts)
        row |= {f"{kind}_{node}": count for node, count in counts.items()}
    row |= {f"bytes_{pair['from']}_to_{pair['to']}": pair["bytes"] for pair in summary.pairs}
    row |= {f"said_{key}": value for key, value in summary.said.items()}
    return row | {"exit_status": summary.exit_status, "wall_seconds": summary.wall_seconds}


def _written(
    folder: Path,
    config: SweepConfig,
    failed: dict[str, str],
    table: pd.DataFrame,
    curves: pd.DataFrame,
    checks: Sequence[CheckRow] = (),
) -> Sweep:
    states = table.drop_duplicates("cell")["state"].value_counts().to_dict()
    record = SweepRecord(
        kind=config.kind,
        name=folder.name,
        title=config.title,
        question=config.question,
        exact=config.exact,
        control=config.control,
        varied=config.varied,
        cells=int(table["cell"].nunique()),
        states={str(state): int(count) for state, count in states.items()},
        excluded=config.excluded,
        machines=_machines(folder, config),
        notes=_notes(table) if config.kind == "command" else (),
        failed=failed,
        checks=tuple(checks),
    )
    table = _of_one_type(table)
    write = {
        "results.parquet": lambda path: table.to_parquet(path, index=False),
        "results.csv": lambda path: table.to_csv(path, index=False),
        "curves.parquet": lambda path: curves.to_parquet(path, index=False),
    }
    for name, into in write.items():  # by rename, so that whatever is killed each is whole
        partial = folder / f"{name}.partial"
        into(partial)
        partial.replace(folder / name)
    write_json(folder / "sweep.json", record)
    return Sweep(record=record, table=table, curves=curves)


def _machines(folder: Path, config: SweepConfig) -> tuple[Machine, ...]:
    """On what cells were learned or timed, and how many: none of it decides a loss, and each may decide a time."""
    used = {entry.cell for entry in (*config.cells, *config.commands)}
    learned = {name for entry in config.cells for name in entry.learned.values()}
    files = [folder / "cells" / name / "environment.json" for name in sorted(used)]
    places = [read_record(Environment, file) for file in files if file.is_file()]
    trainers = [folder / "learned" / f"{name}.json" for name in sorted(learned)]
    places += [read_record(LearnedCell, file).environment for file in trainers if file.is_file()]
    found = Counter((each.host, each.kernel, each.cpu, each.cpu_features) for each in places)
    return tuple(
        Machine(host=host, kernel=kernel, cpu=cpu, cpu_features=features, cells=count)
        for (host, kernel, cpu, features), count in found.most_common()
    )


def _of_one_type(table: pd.DataFrame) -> pd.DataFrame:
    """Columns in which texts, numbers and lists meet, or with integers beyond 64 bits, as texts: a file's columns are
    of one type each."""
    mixed = {
        str(name): values.map(str, na_action="ignore")
        for name, values in table.items()
        if values.dtype == object
        and (len({_kind(value) for value in values.dropna()}) > 1 or any(map(_is_long, values.dropna())))
    }
    return table.assign(**mixed)


def _is_long(value: Any) -> bool:
    """Whether an integer is beyond what a column of numbers holds."""
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _notes(table: pd.DataFrame) -> tuple[str, ...]:
    """What a reader of a command's table must know of its columns."""
    said = [name for name in table.columns if str(name).startswith("said_")]
    long = [name for name in said if any(_is_long(value) for value in table[name].dropna())]
    done = table[table["state"] == "done"]
    silent = int(done[said].isna().all(axis=1).sum()) if said else len(done)
    notes = [f"{', '.join(long)}: integers beyond 64 bits, kept as texts."] * bool(long)
    notes += [f"{silent} of {len(done)} cells printed no JSON object on a line of its own."] * bool(silent)
    return tuple(notes)


def _kind(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "truth"
    return "number" if isinstance(value, int | float | np.number) else type(value).__name__


def sweep_tables(folder: Path, config: SweepConfig, failed: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of every cell and seed, and their curves."""
    learned = _those_there(LearnedCell, folder, {name for entry in config.cells for name in entry.learned.values()})
    summaries = _those_there(CellSummary, folder, {entry.cell for entry in config.cells})
    rows: list[Row] = []
    curves: dict[tuple[str, str], list[pd.DataFrame]] = {}  # the cluster's link is one cell at every point
    for entry in config.cells:
        summary = summaries.get(entry.cell)
        for seed, trainer in entry.learned.items():
            rows.append(_row(entry, seed, summary, learned.get(trainer), failed))
        if summary is not None and (entry.cell, entry.arm) not in curves:
            curves[entry.cell, entry.arm] = _curves(entry, summary, learned)
    table = _related(pd.DataFrame(rows, columns=_columns(config)), config)
    parts = [part for each in curves.values() for part in each]
    empty = pd.DataFrame(columns=["cell", "seed", *COLUMNS])
    return table, pd.concat(parts, ignore_index=True) if parts else empty


def _those_there(kind: type[T], folder: Path, names: set[str]) -> dict[str, T]:
    """Records of cells, or of trainers, by name."""
    places = {
        name: folder / "learned" / f"{name}.json" if kind is LearnedCell else folder / "cells" / name / "summary.json"
        for name in sorted(names)
    }
    return {name: read_record(kind, file) for name, file in places.items() if file.is_file()}


def _columns(config: SweepConfig) -> list[str]:
    """In their order; whatever failed, all are there."""
    first = ["cell", "arm", "seed", "state", "point", *config.varied, "valid", "why", "older"]
    last = [
        "nodes_learned",
        "seconds_per_step",
        "seconds_per_step_ci95",
        "hours",
        "tokens_per_second",
        "compute_utilisation",
        *_OF_VALIDATION,
        "steps",
    ]
    return list(dict.fromkeys([*first, *_OF_POINT, *_OF_NETWORK, *_OF_SUMMARY, *last]))


def _row(
    entry: CellEntry, seed: int, summary: CellSummary | None, trainer: LearnedCell | None, failed: dict[str, str]
) -> Row:
    state = _state(entry, summary, trainer, failed)
    row: Row = {"cell": entry.cell, "arm": entry.arm, "seed": seed, "state": state, **entry.point}
    row |= {key: getattr(entry.network, key) for key in _OF_POINT}
    row |= {"point": described(entry.point), "nodes_learned": entry.nodes_learned}
    row |= {"why": failed.get(entry.cell, ""), "older": entry.older}
    if summary is not None:
        row |= {key: getattr(summary.network, key) for key in _OF_NETWORK} | entry.point  # as it was typed
        row |= {key: getattr(summary, key) for key in _OF_SUMMARY}
        row["payload_by_channel"] = json.dumps(summary.payload_by_channel)
        row |= {"valid": summary.valid, "why": row["why"] or "; ".join(summary.why)}
        row |= _rates(summary)
    if trainer is not None:
        last = trainer.validations[-1]
        row |= {key: getattr(last, key) for key in _OF_VALIDATION} | {"steps": len(trainer.losses)}
        if summary is not None:
            row["hours"] = row["steps"] * row["seconds_per_step"] / 3600
    return row


def _state(entry: CellEntry, summary: CellSummary | None, trainer: LearnedCell | None, failed: dict[str, str]) -> str:
    """done, invalid (timed, but its measurement broke), failed, missing."""
    if entry.cell in failed:
        return "failed"
    if summary is None or trainer is None:
        return "missing"
    return "done" if summary.valid else "invalid"


def _rates(summary: CellSummary) -> dict[str, float]:
    """Of a step with its share of synchronisation, and half of its 95 % interval; infinite where it is not known."""
    each, share = summary.sync_seconds_each, summary.sync_seconds_per_step or 0.0
    seconds = summary.step_seconds_mean + share
    step_half, sync_half = summary.step_seconds_ci95, 0.0
    if each:
        sync_half = mean_interval(summary.timed.sync_seconds)[1] * share / each
    return {
        "seconds_per_step": seconds,
        "seconds_per_step_ci95": math.inf if step_half is None else math.hypot(step_half, sync_half),
        "tokens_per_second": summary.tokens_per_second,
        "compute_utilisation": summary.compute_seconds_median / seconds,
    }


def _curves(entry: CellEntry, summary: CellSummary, learned: Mapping[str, LearnedCell]) -> list[pd.DataFrame]:
    """By seed; the clock is the same for all, for time does not depend on the seed."""
    found, clock = [], None
    for seed, name in entry.learned.items() if summary.valid else ():
        if (trainer := learned.get(name)) is None:
            continue
        if clock is None:
            series = LearnedSeries(loss=trainer.losses, validations=trainer.validations)
            part = clock = arm_table(summary.network, replace(summary, arm=entry.arm, learned=series))
        else:
            part = _on(clock, trainer)
        found.append(part.assign(cell=entry.cell, seed=seed))
    return found


def _on(clock: pd.DataFrame, trainer: LearnedCell) -> pd.DataFrame:
    """Another seed's losses on a clock that is there."""
    losses = pd.DataFrame({"step": range(1, len(trainer.losses) + 1), "loss": trainer.losses})
    known = [each.name for each in fields(Validation) if each.name in COLUMNS]
    validations = pd.DataFrame(list(map(asdict, trainer.validations)), columns=known)
    validations = validations.astype(dict.fromkeys(known[1:], float))
    kept = ["step", *(name for name in clock.columns if name not in ("loss", *known))]
    table = clock[kept].merge(losses, on="step", how="left")
    return table.merge(validations, on="step", how="left")[list(COLUMNS)]


def _related(table: pd.DataFrame, config: SweepConfig) -> pd.DataFrame:
    """What a row is against the exact exchange and the control of its point and seed."""
    rows: list[Row] = table.to_dict("records")  # pyrefly: ignore
    known = {(row["point"], row["arm"], row["seed"]): row for row in rows}
    exact, control = config.exact, config.control
    related = [
        _faster(row, known[row["point"], exact, row["seed"]])
        | _recovered(row, known[row["point"], exact, row["seed"]], known[row["point"], control, row["seed"]])
        for row in rows
    ]
    return table.join(pd.DataFrame(related, index=table.index))


def _faster(row: Row, exact: Row) -> Row:
    """Speed-up in a step's time, with its 95 % interval.

    Unresolved: the interval, and with it what the link's own rate is off by, holds 1.
    """
    if not row["state"] == exact["state"] == "done":
        return {"speedup": math.nan, "speedup_half": math.nan, "resolved": None}
    speedup = exact["seconds_per_step"] / row["seconds_per_step"]
    half = speedup * math.hypot(*(each for of in (row, exact) for each in (_relative(of), _link_off(of))))
    resolved = row["cell"] == exact["cell"] or abs(speedup - 1) > half
    return {"speedup": speedup, "speedup_half": half, "resolved": resolved}


def _recovered(row: Row, exact: Row, control: Row) -> dict[str, float]:
    """The share of what exchange is worth, of what was learned alone, whatever became of the links; none where it is
    worth less than a comparison needs to say anything, or they learned from different numbers of steps."""
    found = recovered(*(each["val_loss_remote"] for each in (row, exact, control)))
    tells = found is not None and row["steps"] == exact["steps"] == control["steps"]  # of trainings as long
    tells = tells and control["val_loss"] >= (1 + CONTROL_ABOVE) * exact["val_loss"]
    return {"recovered_fraction": found if found is not None and tells else math.nan}


def _relative(row: Row) -> float:
    return row["seconds_per_step_ci95"] / row["seconds_per_step"]


def _link_off(row: Row) -> float:
    """How far the measured rate is from the asked one, as a fraction."""
    asked, measured = row["rate_bps"], row["rate_measured_bps"]
    known = all(value is not None and not math.isnan(value) for value in (asked, measured))
    return abs(measured / asked - 1) if known else 0.0
