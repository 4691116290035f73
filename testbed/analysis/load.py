"""A comparison on disk: its tidy table is written at the end of a run, and read by all that follows."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed.analysis.compose import compose
from testbed.analysis.relations import with_nats
from testbed.errors import UsageError

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

    comparison: dict[str, Any]
    """As in `comparison.json`."""
    table: pd.DataFrame
    """A row per arm and step, with `COLUMNS`."""

    @property
    def arms(self) -> list[dict[str, Any]]:
        """The arms' figures, in their order."""
        return with_nats(self.comparison["arms"])

    @property
    def warm_seconds(self) -> float:
        """The warm start's share of every arm's time."""
        return self.comparison.get("warm_start_seconds") or 0.0

    @property
    def paced(self) -> bool:
        """Whether compute time is modelled: held to a target's, rather than this machine's own."""
        return self.comparison.get("pace") not in (None, "none")


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
    try:
        comparison = json.loads(source.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{source} is not valid JSON ({error}): the run did not end as it should") from None
    _check_version(comparison.get("schema_version"), source)
    table = pd.read_parquet(results)
    _check_version(table.attrs.get("schema_version"), results)
    return Comparison(comparison=comparison, table=table)


def _check_version(found: Any, file: Path) -> None:
    if found != SCHEMA_VERSION:
        raise UsageError(f"{file} has schema version {found}, and this testbed reads version {SCHEMA_VERSION} only")


def write_results(folder: Path | str, comparison: dict[str, Any], summaries: dict[str, dict[str, Any]]) -> Comparison:
    """Write `results.parquet` and `results.csv` into `folder`, from each arm's `summary.json` by its name."""
    table = results_table(comparison, summaries)
    table.to_parquet(Path(folder) / "results.parquet", index=False)
    table.to_csv(Path(folder) / "results.csv", index=False)
    return Comparison(comparison=comparison, table=table)


def results_table(comparison: dict[str, Any], summaries: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """The tidy table: an arm without summary (it failed) has no rows, one without timed steps no times."""
    parts = [arm_table(comparison, arm, summaries[arm["arm"]]) for arm in comparison["arms"] if arm["arm"] in summaries]
    parts = [part for part in parts if len(part)]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    table.attrs["schema_version"] = SCHEMA_VERSION
    return table


def arm_table(comparison: dict[str, Any], arm: dict[str, Any], summary: dict[str, Any]) -> pd.DataFrame:
    """The rows of one arm, with `COLUMNS`: its losses by step on the clock of its timed steps."""
    learned, timed = summary.get("learned") or {}, summary.get("timed") or {}
    validations = pd.DataFrame(learned.get("validations") or [], columns=["step", *_VALIDATED])
    losses = list(learned.get("loss") or [])
    if comparison["mode"] == "composed":
        clock = _composed_clock(comparison, arm, timed, steps=len(losses))
    else:
        clock, losses = _measured_clock(timed, losses)
    curve = pd.DataFrame({"step": np.arange(1, len(losses) + 1), "loss": pd.Series(losses, dtype=float)})
    start = pd.DataFrame({"step": [0], "time_seconds": [0.0], "time_low": [0.0], "time_high": [0.0]})
    clock = pd.concat([start, clock], ignore_index=True)
    table = curve.merge(validations, on="step", how="outer").merge(clock, on="step", how="left")
    table = table.astype(dict.fromkeys(("loss", *_VALIDATED, *_TIMES), float))
    table = table.assign(arm=arm["arm"], time_kind=_time_kind(comparison, arm), loss_kind="measured")
    return table[list(COLUMNS)]


def _time_kind(comparison: dict[str, Any], arm: dict[str, Any]) -> str:
    if arm.get("link") == "modelled":
        return "modelled"
    return "composed" if comparison["mode"] == "composed" else "measured"


def _composed_clock(
    comparison: dict[str, Any], arm: dict[str, Any], timed: dict[str, Any], *, steps: int
) -> pd.DataFrame:
    measured = [step["step_seconds"] for step in timed.get("steps") or [] if step.get("valid", True)]
    if not measured or not steps:
        return pd.DataFrame(columns=["step", *_TIMES], dtype=float)
    return compose(
        measured,
        timed.get("sync_seconds") or [],
        steps=steps,
        sync_every=None if arm.get("sync") == "gradients" else comparison["sync_every"],
        warm_seconds=0.0,
        seed=comparison.get("seed") or 0,
        unsure_seconds=(timed.get("steps") or [{}])[0].get("unsure_seconds"),
    )


def _measured_clock(timed: dict[str, Any], learned: list[float]) -> tuple[pd.DataFrame, list[float]]:
    """Time after each step as it was read, and the losses of those very steps (else the learned ones)."""
    steps = timed.get("steps") or []
    losses = [step.get("loss") for step in steps]
    if not steps or any(loss is None for loss in losses):
        losses = learned
    times = [step.get("time_seconds") for step in steps]
    clock = pd.DataFrame({"step": [step["step"] + 1 for step in steps], "time_seconds": pd.Series(times, dtype=float)})
    return clock.assign(time_low=clock["time_seconds"], time_high=clock["time_seconds"]), losses
