"""Tables for `testbed doctor` and `testbed runs`."""

from fnmatch import fnmatch
from pathlib import Path
from typing import TypedDict

from rich import box
from rich.markup import escape
from rich.table import Table

from emulation.doctor.capability import Capability
from testbed.errors import UsageError, in_words
from testbed.formats import counted
from testbed.records import ComparisonRecord, QualityRecord, SweepRecord, read_record
from testbed.rundir.directory import RUNS, read_failed

__all__ = ["RunLine", "capability_table", "list_runs", "runs_table"]


_ONE_LINE = 42


class RunLine(TypedDict, total=False):
    """A run in the list; what is not known of its kind is left out."""

    name: str
    kind: str
    state: str
    reason: str
    """Why it failed, or what it is."""
    mode: str
    bandwidth_bps: float
    accounting: str
    arms: dict[str, float]
    """Seconds a step, by arm."""


def capability_table(capabilities: list[Capability]) -> Table:
    """What was tried, whether it works, and what to do where it does not; what every run needs comes first."""
    bad = [each for each in capabilities if each.needed and not each.ok]
    missing = [each.name for each in bad if each.detail != "not tried"]
    caption = (
        f"a run needs what is missing here: {', '.join(missing)}" if missing else "all that a run needs works here"
    )
    table = Table(title="what this machine can do", caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("works")
    table.add_column("found, and → what to change", overflow="fold")
    needed = True
    for each in capabilities:
        if needed and not each.needed:
            table.add_section()
        needed = each.needed
        works = "[green]yes[/green]" if each.ok else "[bold red]NO[/bold red]" if needed else "[yellow]no[/yellow]"
        remedy = "" if each.ok or not each.remedy else f"[yellow]→ {escape(each.remedy)}[/yellow]"
        gap = " " if len(each.detail) + len(each.remedy) < _ONE_LINE else "\n"
        table.add_row(escape(each.name), works, f"{escape(each.detail)}{gap}{remedy}".rstrip())
    return table


def list_runs(*, kind: str | None = None, state: str | None = None, name: str | None = None) -> list[RunLine]:
    """Every run in runs/: name, kind, state, what it found; or only those of a kind, in a state, of a name."""
    return [
        run
        for run in _all_runs()
        if kind in (None, run["kind"]) and state in (None, run["state"]) and fnmatch(run["name"], name or "*")
    ]


def _all_runs() -> list[RunLine]:
    return [_run(folder) for folder in sorted(RUNS.iterdir()) if folder.is_dir()] if RUNS.is_dir() else []


def _run(folder: Path) -> RunLine:
    """A line of the list, of a run whose records cannot be read too."""
    run: RunLine = {"name": folder.name, "kind": _kind(folder), "state": "unfinished"}
    try:
        if (folder / "FAILED").exists():
            run["state"], run["reason"] = "failed", read_failed(folder)
        if (folder / "comparison.json").exists():
            run |= _comparison(read_record(ComparisonRecord, folder / "comparison.json"))
        if (folder / "quality.json").exists():
            run |= _quality(read_record(QualityRecord, folder / "quality.json"))
        if (folder / "sweep.json").exists():
            run |= _sweep(read_record(SweepRecord, folder / "sweep.json"))
    except UsageError as error:
        run["state"], run["reason"] = "broken", f"{error}"
    except OSError as error:
        run["state"], run["reason"] = "broken", in_words(error)
    return run


def _comparison(record: ComparisonRecord) -> RunLine:
    return {
        "state": "done" if all(arm.valid for arm in record.arms) else "invalid",
        "bandwidth_bps": record.bandwidth_bps,
        "accounting": record.accounting,
        "mode": record.mode,
        "arms": {arm.arm: arm.step_seconds_mean for arm in record.arms},
    }


def _quality(record: QualityRecord) -> RunLine:
    return {
        "state": "done" if record.cells == record.cells_asked else "unfinished",
        "mode": "learn",
        "reason": f"{record.cells} of {record.cells_asked} cells: {record.title}",
    }


def _sweep(record: SweepRecord) -> RunLine:
    counts = ", ".join(f"{count} {state}" for state, count in record.states.items())
    return {
        "state": "failed" if record.failed else "done" if set(record.states) == {"done"} else "unfinished",
        "mode": "sweep",
        "reason": f"{record.cells} cells ({counts}): {record.title}",
    }


def _kind(folder: Path) -> str:
    """By what is there from the beginning."""
    if (folder / "learned").is_dir():
        return "sweep"
    return "learn" if (folder / "cells").is_dir() else "emulate"


def runs_table(runs: list[RunLine]) -> Table:
    """The list of runs as a table."""
    table = Table(title=counted(len(runs), "run"))
    for name in ("run", "state", "rate", "mode", "seconds per step, or what it is"):
        table.add_column(name, overflow="fold")
    for run in runs:
        rate = f"{run['bandwidth_bps'] / 1e6:g} Mbit/s {run['accounting']}" if "bandwidth_bps" in run else ""
        steps = ", ".join(f"{name} {seconds:.3g}" for name, seconds in run.get("arms", {}).items())
        table.add_row(
            escape(run["name"]),
            run["state"],
            rate,
            escape(str(run.get("mode", ""))),
            steps or escape(run.get("reason", "")),
        )
    return table
