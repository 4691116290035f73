"""The end of a sweep on a terminal: a table of its points, what it means in sentences, what failed."""

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.analysis.comparison.baselines import CONTROL_ABOVE
from testbed.analysis.plot.style import shown
from testbed.analysis.sweep.composed_vs_trained import check_sentence
from testbed.analysis.sweep.doubts import doubts
from testbed.analysis.sweep.results import Sweep
from testbed.analysis.sweep.rows import CellRow, rows_of
from testbed.formats import MISSING, percent, significant, trimmed, usable

__all__ = ["print_sweep", "verdict"]

_MOST_CHECKS = 12
_COLUMNS = ("step ± 95 %", "link", "× exact", "tokens/s", "computes", "val loss", "recovered", "state")


def print_sweep(sweep: Sweep, console: Console) -> None:
    """A row per point and arm; losses are means over seeds."""
    if sweep.of_commands:
        console.print(_commands(sweep))
        for note in sweep.record.notes:
            console.print(Text(f"• {note}"))
        _print_failed(sweep, console)
        return
    table = Table(title=Text(shown(sweep.record.title, 80)), box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for key in sweep.record.varied:
        table.add_column(Text(key), no_wrap=True)
    table.add_column("arm", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for _, rows in sweep.table.groupby(["point", "arm"], sort=False):
        (first,) = rows_of(sweep, rows.iloc[:1])
        if before not in (None, first.point):
            table.add_section()
        before = first.point
        texts = [Text(str(first.varied[key])) for key in sweep.record.varied]
        table.add_row(*texts, Text(shown(first.arm, 16)), *_cells(first, rows))
    console.print(table)
    for sentence in verdict(sweep):
        console.print(Text(f"• {sentence}"))
    _print_failed(sweep, console)


def _print_failed(sweep: Sweep, console: Console) -> None:
    checks = {check.cell: check for check in sweep.record.checks}
    for cell, why in sweep.record.failed.items():
        row = sweep.table[sweep.table["cell"] == cell].iloc[0] if cell not in checks else vars(checks[cell])
        whose = f"seed {row['seed']}" if sweep.of_commands else row["arm"]
        console.print(Text(f"FAILED: {whose} at {row['point']}: {why.splitlines()[0]}"), style="red")


def _commands(sweep: Sweep) -> Table:
    """A row per cell: wall time, bytes, and what the command said."""
    table = Table(title=Text(shown(sweep.record.title, 80)), box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    said = [name for name in sweep.table.columns if name.startswith("said_")]
    names = [*sweep.record.varied, "seed", "wall_seconds", "sent_bytes_mean", "exit_status", *said, "state"]
    for name in names:
        table.add_column(Text(name.removeprefix("said_")), overflow="fold")
    for row in sweep.table.to_dict("records"):
        table.add_row(*(Text(significant(v, 5) if usable(v := row.get(name)) else str(v)) for name in names))
    return table


def _cells(row: CellRow, rows: pd.DataFrame) -> list[str]:
    if row.state not in ("done", "invalid"):
        return [*[MISSING] * (len(_COLUMNS) - 1), row.state.upper() if row.state == "failed" else row.state]
    half = row.step_seconds_ci95
    speedup = significant(row.speedup) if row.resolved or row.speedup in (None, 1) else "≈ 1"
    return [
        f"{significant(row.step_seconds_mean)}±{'?' if half is None else significant(half, 1)}",
        row.link or MISSING,
        speedup,
        significant(row.tokens_per_second),
        percent(row.compute_utilisation),
        _spread(rows["val_loss"]),
        trimmed(rows["recovered_fraction"].mean()) if rows["recovered_fraction"].notna().any() else MISSING,
        ", ".join(["INVALID" if row.state == "invalid" else "done", *row.marks]),
    ]


def _spread(values: pd.Series) -> str:
    """Mean, and half of what lies between the lowest and the highest seed."""
    half = (values.max() - values.min()) / 2
    return (
        f"{significant(values.mean(), 4)}±{significant(half, 1)}" if len(values) > 1 else significant(values.mean(), 4)
    )


def verdict(sweep: Sweep) -> list[str]:
    """What the table says, arm by arm: where it is faster than the exact exchange, and what it costs."""
    done = sweep.table[sweep.table["state"] == "done"]
    exact, control = sweep.record.exact, sweep.record.control
    found = []
    for arm in sweep.arms:
        rows = done[(done["arm"] == arm) & done["speedup"].notna()]
        if arm == exact or rows.empty:
            continue
        points = rows.drop_duplicates("point")
        sure = points[points["resolved"].astype(bool)]
        faster, slower = sure[sure["speedup"] > 1], sure[sure["speedup"] < 1]
        span = f" ({_span(faster['speedup'])} times)" if len(faster) else ""
        text = f"{arm}: a step is faster than {exact}'s at {len(faster)} of {len(points)} points{span}"
        text += f", slower at {len(slower)}" if len(slower) else ""
        unresolved = len(points) - len(sure)
        text += f", at {unresolved} the difference is below what was resolved" if unresolved else ""
        if arm != control and rows["recovered_fraction"].notna().any():
            low, high = rows["recovered_fraction"].min(), rows["recovered_fraction"].max()
            text += (
                f"; it recovers {_between(low, high)} of what exchange is worth (over {rows['seed'].nunique()} seeds)"
            )
        found.append(text + ".")
    lengths = done.groupby("arm")["steps"].agg(set)
    if other := [arm for arm in sweep.arms if exact in lengths and arm in lengths and lengths[arm] != lengths[exact]]:
        found.append(
            f"{', '.join(other)} learned from another number of steps than {exact}: no share of what exchange is worth "
            "is given."
        )
    if note := _void(done, exact, control):
        found.append(note)
    cells = sweep.table.drop_duplicates("cell")
    if count := int((cells["state"] == "invalid").sum()):
        found.append(f"{count} of {len(cells)} cells are invalid: their times are not used (column why).")
    found += doubts(sweep)
    checks = sorted(sweep.record.checks, key=lambda check: check.state == "done")  # the worst first
    found += [check_sentence(check) for check in checks[:_MOST_CHECKS]]
    return found + [f"{len(checks) - _MOST_CHECKS} more checks: sweep.json."] * (len(checks) > _MOST_CHECKS)


def _void(done: pd.DataFrame, exact: str, control: str) -> str:
    """That the task shows nothing about exchange, and nothing is said to be recovered."""
    loss = done.groupby(["point", "seed", "arm"])["val_loss"].first().unstack()
    if exact not in loss or control not in loss:
        return ""
    above = (loss[control] / loss[exact] - 1).dropna()
    count = int((above < CONTROL_ABOVE).sum())
    if not count:
        return ""
    return (
        f"At {count} of {len(above)} points and seeds the loss without exchange is less than {percent(CONTROL_ABOVE)} "
        f"above {exact}'s ({percent(float(above.min()), signed=True)} at the least): they show nothing about exchange, "
        "and no share that is recovered is given."
    )


def _span(values: pd.Series) -> str:
    return _between(float(values.min()), float(values.max()))


def _between(low: float, high: float) -> str:
    first, last = trimmed(low).replace("-", "−"), trimmed(high).replace("-", "−")
    return first if first == last else f"{first} to {last}"
