"""A comparison on disk: its tidy table is written at the end of a run, and read by all that follows."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from testbed.analysis.comparison.baselines import with_nats
from testbed.analysis.comparison.timeline import compose
from testbed.errors import UsageError
from testbed.records import ArmRecord, ArmSummary, ComparisonRecord, Conditions, read_record

__all__ = [
    "COLUMNS",
    "SCHEMA_VERSION",
    "Comparison",
    "arm_table",
    "load_comparison",
    "results_table",
    "run_of_notebook",
    "write_results",
]

SCHEMA_VERSION = 1

COLUMNS = (
    "arm",
    "step",
    "loss",
    "val_loss",
    "val_loss_text",
    "val_loss_remote",
    "recall_accuracy_remote",
    "time_seconds",
    "time_low",
    "time_high",
    "time_kind",
    "loss_kind",
)
"""Of the table: a row per arm and step. Losses in nats per token; times in seconds since the first step after
the warm start (which is a figure of its own), synchronisation included, evaluation excluded."""

_VALIDATED = ("val_loss", "val_loss_text", "val_loss_remote", "recall_accuracy_remote")
_TIMES = ("time_seconds", "time_low", "time_high")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was compared, and its table of losses and times."""

    record: ComparisonRecord
    table: pd.DataFrame
    """A row per arm and step, with `COLUMNS`."""

    @property
    def arms(self) -> tuple[ArmRecord, ...]:
        """The arms' figures, in their order."""
        return self.record.arms


def run_of_notebook(variable: str, name: str) -> Path:
    """The run that a notebook shows: what the environment variable names, else `runs/NAME`, seen from the checkout or
    from its notebooks. Raises `UsageError` where there is none."""
    given = os.environ.get(variable)
    places = [Path(given)] if given else [Path("runs") / name, Path("..") / "runs" / name]
    for place in places:
        if place.is_dir():
            return place
    raise UsageError(
        f"there is no run {given or name}: make it first, or set {variable} to another run's folder (an absolute path) "
        f"before the notebook is opened; looked for {' and '.join(str(place.resolve()) for place in places)}"
    )


def load_comparison(path: Path | str) -> Comparison:
    """The comparison in the folder `path`; raises `UsageError` with one sentence if it cannot be read."""
    folder = Path(path)
    source, results = folder / "comparison.json", folder / "results.parquet"
    for file in (source, results):
        if not file.is_file():
            raise UsageError(f"{folder} holds no {file.name}: it is no finished comparison")
    record = read_record(ComparisonRecord, source)
    try:
        table = pd.read_parquet(results)
    except (ValueError, OSError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"{results} cannot be read ({said}): it is damaged; run it again") from None
    if (found := table.attrs.get("schema_version")) != SCHEMA_VERSION:
        raise UsageError(f"{results} has schema version {found}, and this testbed reads version {SCHEMA_VERSION} only")
    return Comparison(record=replace(record, arms=tuple(with_nats(record.arms))), table=table)


def write_results(folder: Path | str, record: ComparisonRecord, summaries: Mapping[str, ArmSummary]) -> Comparison:
    """Write `results.parquet` and `results.csv` into `folder`, from each arm's summary by its name."""
    table = results_table(record, summaries)
    table.to_parquet(Path(folder) / "results.parquet", index=False)
    table.to_csv(Path(folder) / "results.csv", index=False)
    return Comparison(record=record, table=table)


def results_table(record: ComparisonRecord, summaries: Mapping[str, ArmSummary]) -> pd.DataFrame:
    """The tidy table: an arm without summary (it failed) has no rows, one without timed steps no times."""
    parts = [arm_table(record, summaries[arm.arm]) for arm in record.arms if arm.arm in summaries]
    parts = [part for part in parts if len(part)]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    table.attrs["schema_version"] = SCHEMA_VERSION
    return table


def arm_table(conditions: Conditions, summary: ArmSummary) -> pd.DataFrame:
    """The rows of one arm, with `COLUMNS`: its losses by step on the clock of its timed steps."""
    validations = pd.DataFrame(map(asdict, summary.learned.validations), columns=["step", *_VALIDATED])
    if conditions.mode == "composed":
        losses = summary.learned.loss
        clock = _composed_clock(conditions, summary, steps=len(losses))
    else:
        clock, losses = _measured_clock(summary)
    curve = pd.DataFrame({"step": np.arange(1, len(losses) + 1), "loss": pd.Series(losses, dtype=float)})
    start = pd.DataFrame({"step": [0], "time_seconds": [0.0], "time_low": [0.0], "time_high": [0.0]})
    clock = pd.concat([start, clock], ignore_index=True)
    table = curve.merge(validations, on="step", how="outer").merge(clock, on="step", how="left")
    table = table.astype(dict.fromkeys(("loss", *_VALIDATED, *_TIMES), float))
    table = table.assign(arm=summary.arm, time_kind=_time_kind(conditions, summary), loss_kind="measured")
    return table[list(COLUMNS)]


def _time_kind(conditions: Conditions, arm: ArmRecord) -> str:
    if arm.link == "modelled":
        return "modelled"
    return "composed" if conditions.mode == "composed" else "measured"


def _composed_clock(conditions: Conditions, summary: ArmSummary, *, steps: int) -> pd.DataFrame:
    timed = summary.timed
    measured = [step.step_seconds for step in timed.steps if step.valid]
    if not measured or not steps:
        return pd.DataFrame(columns=["step", *_TIMES], dtype=float)
    return compose(
        measured,
        timed.sync_seconds,
        steps=steps,
        sync_every=None if summary.sync == "gradients" else conditions.sync_every,
        warm_seconds=0.0,
        seed=conditions.seed,
        unsure_seconds=next(step.unsure_seconds for step in timed.steps if step.valid),
    )


def _measured_clock(summary: ArmSummary) -> tuple[pd.DataFrame, tuple[float, ...]]:
    """Time after each step as it was read, and the losses of those very steps (else the learned ones)."""
    steps = summary.timed.steps
    losses = tuple(step.loss for step in steps) or summary.learned.loss
    times = pd.Series([step.time_seconds for step in steps], dtype=float)
    clock = pd.DataFrame({"step": [step.step + 1 for step in steps], "time_seconds": times})
    return clock.assign(time_low=clock["time_seconds"], time_high=clock["time_seconds"]), losses
