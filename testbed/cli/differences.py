"""Two finished comparisons side by side: what was asked, code and data, machine, links, and what came out."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.config.tree import plain_json, table_of
from testbed.errors import UsageError
from testbed.formats import MISSING, counted, nats_above, percent, rate, significant, size
from testbed.records import ArmRecord, ComparisonRecord, read_json, read_record
from testbed.rundir.directory import run_folder

__all__ = ["Difference", "Differences", "differences", "print_differences", "show"]

Part = Literal["settings", "code and data", "machine"]

_NO_SETTING = {"folder", "name", "command", "schema_version"}
_LINKS = ("accounting", "framing", "bandwidth_bps", "delay_seconds", "loss", "network_links", "schedule")
"""Of a comparison's record; its config.json leaves the network to it."""
_CODE = ("commit", "changed since", "sources_sha256", "python", "packages", "corpus_sha256", "warm_start_sha256")
_MACHINE = ("kernel", "cpu", "cpu_features", "host", "cores", "threads_per_rank")
_RESULTS = (
    "valid",
    "rate_measured_bps",
    "step_seconds_mean",
    "step_seconds_ci95",
    "payload_bytes_per_step",
    "final_val_loss",
    "val_loss_remote",
    "recall_accuracy_remote",
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of a setting, or of what decides a result besides; None where one of the two has no such thing."""

    part: Part
    what: str
    """Keys, joined by dots; of an arm's settings its name comes second."""
    one: JsonValue
    other: JsonValue


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What `differences` found."""

    names: tuple[str, str]
    found: list[Difference]
    arms: dict[str, tuple[ArmRecord | None, ArmRecord | None]]
    """By name, of the one run and of the other; None where a run has no such arm."""

    def record(self) -> dict[str, JsonValue]:
        """JSON-able; of an arm `_RESULTS`."""
        arms = {
            name: [each and {key: getattr(each, key) for key in _RESULTS} for each in pair]
            for name, pair in self.arms.items()
        }
        differ = [table_of(each) for each in self.found]
        return json.loads(json.dumps({"runs": self.names, "differences": differ, "arms": arms}))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is compared of a run."""

    parts: dict[Part, dict[str, JsonValue]]
    arms: dict[str, ArmRecord]


def differences(one: Path, other: Path) -> Differences:
    """Of two folders of `testbed emulate`; raises UsageError where one holds no finished comparison."""
    first, second = _read(one), _read(other)
    found = []
    for part in first.parts:
        left, right = dict(_flat(first.parts[part])), dict(_flat(second.parts[part]))
        for what in dict.fromkeys((*left, *right)):
            if left.get(what) != right.get(what):
                found.append(Difference(part=part, what=what, one=left.get(what), other=right.get(what)))
    names = list(dict.fromkeys((*first.arms, *second.arms)))
    arms = {name: (first.arms.get(name), second.arms.get(name)) for name in names}
    return Differences(names=(one.name, other.name), found=found, arms=arms)


def show(one: str, other: str, console: Console, *, as_json: bool = False) -> None:
    """Print what `testbed diff` says of two runs, by name or folder."""
    found = differences(run_folder(one), run_folder(other))
    if as_json:
        print(json.dumps({"schema_version": 1, **found.record()}, indent=2))
    else:
        print_differences(found, console)


def _read(folder: Path) -> _Run:
    if not (folder / "comparison.json").is_file():
        raise UsageError(
            f"{folder} holds no finished comparison; testbed diff takes two of them, as testbed emulate leaves them"
        )
    record, asked = read_record(ComparisonRecord, folder / "comparison.json"), read_json(folder / "config.json")
    try:
        asked = asked | {"arms": {arm["name"]: arm for arm in asked["arms"]}}
        machines = [file for arm in record.arms if (file := folder / arm.arm / "environment.json").is_file()]
        machine = read_json(machines[0]) if machines else {}
        machine |= {"corpus_sha256": record.corpus_sha256, "warm_start_sha256": record.warm_start_sha256}
        machine["changed since"] = bool(machine.get("dirty_diff"))
        return _Run(
            parts={
                "settings": {key: value for key, value in asked.items() if key not in _NO_SETTING}
                | {key: plain_json(getattr(record, key)) for key in _LINKS},
                "code and data": {key: machine.get(key) for key in _CODE},
                "machine": {key: machine.get(key) for key in _MACHINE},
            },
            arms={arm.arm: arm for arm in record.arms},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder} holds no record of ours ({type(error).__name__}: {error})") from None


def _flat(record: Mapping[str, JsonValue], before: str = "") -> Iterator[tuple[str, JsonValue]]:
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        elif value is not None:
            yield f"{before}{key}", value


def print_differences(found: Differences, console: Console) -> None:
    """For people: what differs, then each arm's results."""
    one, other = map(escape, found.names)
    if found.found:
        table = Table(title="what differs", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("what", one, other):
            table.add_column(name, overflow="fold")
        part = None
        for each in found.found:
            if each.part != part:
                table.add_section()
                table.add_row(f"[bold]{each.part}[/bold]", "", "")
                part = each.part
            table.add_row(escape(each.what), _shown(each.one), _shown(each.other))
        console.print(table)
    else:
        console.print("Settings, code, data and machine are the same.")
    table = Table(title="what came out", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm, and of which run", overflow="fold")
    for name in ("link, measured", "s a step", "bytes a step", "loss", "right, remote", "valid"):
        table.add_column(name, justify="right")
    for arm, (left, right) in found.arms.items():
        table.add_section()
        table.add_row(f"[bold]{escape(arm)}[/bold]")
        for name, result in ((one, left), (other, right)):
            table.add_row(f"  {name}", *(_row(result) if result else [MISSING] * 6))
        if left and right:
            table.add_row("  difference", *_between(left, right))
    console.print(table)
    console.print(_summary(found))


def _row(arm: ArmRecord) -> list[str]:
    half = arm.step_seconds_ci95
    return [
        rate(arm.rate_measured_bps),
        significant(arm.step_seconds_mean) + (f" ± {significant(half, 2)}" if half is not None else ""),
        size(arm.payload_bytes_per_step),
        significant(arm.final_val_loss, 4),
        significant(arm.recall_accuracy_remote),
        "yes" if arm.valid else "NO",
    ]


def _between(left: ArmRecord, right: ArmRecord) -> list[str]:
    return [
        _ratio(left.rate_measured_bps, right.rate_measured_bps),
        _ratio(left.step_seconds_mean, right.step_seconds_mean),
        _ratio(left.payload_bytes_per_step, right.payload_bytes_per_step),
        _nats(left.final_val_loss, right.final_val_loss),
        _nats(left.recall_accuracy_remote, right.recall_accuracy_remote),
        "",
    ]


def _ratio(left: float | None, right: float | None) -> str:
    return percent(right / left - 1, signed=True) if left and right else MISSING


def _nats(left: float | None, right: float | None) -> str:
    if left is None or right is None:
        return MISSING
    return "none" if left == right else nats_above(right - left)


def _summary(found: Differences) -> str:
    both = {name: (left, right) for name, (left, right) in found.arms.items() if left and right}
    same = [name for name, (left, right) in both.items() if left.final_val_loss == right.final_val_loss]
    apart = [name for name, (left, right) in both.items() if _apart(left, right)]
    said = [f"Losses are the same to the last bit in {len(same)} of {counted(len(both), 'arm')} that both have."]
    if both:
        said.append(
            "Step times differ by more than their 95 % intervals in: " + ", ".join(map(escape, apart)) + "."
            if apart
            else "Step times differ by no more than their 95 % intervals, where both have one."
        )
    return " ".join(said)


def _apart(left: ArmRecord, right: ArmRecord) -> bool:
    halves = (left.step_seconds_ci95, right.step_seconds_ci95)
    known = [half for half in halves if half is not None and math.isfinite(half)]
    return len(known) == 2 and abs(left.step_seconds_mean - right.step_seconds_mean) > sum(known)


def _shown(value: Any) -> str:
    text = MISSING if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return escape(text if len(text) <= 60 else f"{text[:57]}…")
