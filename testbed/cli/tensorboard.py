"""Any run as TensorBoard events (extra `track`): `testbed runs --tensorboard RUN`.

A writer an arm, cell and seed. Steps are steps; the time axis ("wall") is the run's own: seconds since the first step,
measured or composed, as the run's tables have it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from testbed.analysis.comparison.load import load_comparison
from testbed.analysis.sweep.results import load_sweep
from testbed.collector.metrics import read_metrics
from testbed.errors import UsageError

__all__ = ["export"]

_SCALARS = ("loss", "val_loss", "val_loss_remote", "recall_accuracy_remote")


def export(folder: Path, warn: Callable[[str], None]) -> Path:
    """Write `tensorboard/` into a run's folder; raises `UsageError` if there is nothing, or no tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("TensorBoard is not installed: type pip install 'slowlink-testbed[track]'") from None
    target = folder / "tensorboard"
    series = list(_series(folder, warn))
    if target.exists():
        raise UsageError(f"{target} is there already; remove it to write it anew")
    for name, rows in series:
        with SummaryWriter(str(target / _place(name))) as writer:
            for row in rows.to_dict("records"):
                for key in _SCALARS:
                    if pd.notna(value := row.get(key)):
                        seconds = row.get("time_seconds")
                        writer.add_scalar(key, value, int(row["step"]), walltime=seconds if pd.notna(seconds) else None)
    return target


def _place(name: str) -> str:
    """A folder's name from a user's."""
    return "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in name)


def _series(folder: Path, warn: Callable[[str], None]) -> Iterator[tuple[str, pd.DataFrame]]:
    """What a run holds, by what it is called: of a comparison, a sweep, learned cells, or a trainer's own folder."""
    if (folder / "comparison.json").is_file():
        yield from _groups(load_comparison(folder).table, ["arm"])
    elif (folder / "sweep.json").is_file():
        sweep = load_sweep(folder)
        points = sweep.table[["cell", "arm", "seed", "point"]]
        yield from _groups(sweep.curves.merge(points, on=["cell", "arm", "seed"]), ["point", "arm", "seed"])
    elif (folder / "quality.json").is_file():
        yield from _groups(pd.read_parquet(folder / "results.parquet"), ["preset", "arm", "seed"])
    elif files := sorted((folder / "metrics").glob("rank*.jsonl")):
        for file in files:
            lines, problems = read_metrics(file)
            for problem in problems:
                warn(problem)
            rows = pd.DataFrame(lines)
            if "time_seconds" in rows:  # a validation is of the step before it
                rows["time_seconds"] = rows["time_seconds"].ffill()
            yield file.stem, rows
    else:
        raise UsageError(f"{folder} holds no comparison, sweep, learned cells or metrics: there is nothing to export")


def _groups(table: pd.DataFrame, keys: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    for values, rows in table.groupby(keys, sort=False):
        yield " ".join(str(value) for value in values), rows  # pyrefly: ignore
