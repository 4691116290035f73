"""A grid as data: which settings are varied, which combinations are left out and why.

    title = "When does compression pay?"
    question = "From which bandwidth and latency on is a compressed exchange faster?"
    arms = ["decentralised", "subspace", "control"]   # names, or tables as for `testbed learn`
    seeds = [0, 1]                                    # of what is learned

    [settings]                                        # of every point
    preset = "quick"
    target = "paper-800m"

    [grid]                                            # every value of one with every value of the others
    bw = ["30mbit", "100mbit", "300mbit", "1gbit"]
    delay = ["0ms", "5ms", "20ms", "50ms"]
    preset.sync_every = [25, 50]                      # dotted: of the preset, the target, or (arm) of every arm

    [[together]]                                      # lists of one length that are gone through in step
    nodes = [2, 4]
    preset.batch = [2, 4]

    [[exclude]]                                       # combinations that are not run
    bw = "30mbit"
    delay = ["20ms", "50ms"]
    reason = "minutes a step, and it is lost at 5 ms already"

    [[check]]                                         # cells that are also trained step by step on their links
    arm = "subspace"
    bw = "300mbit"
    delay = "0ms"

A key is a flag of `testbed emulate` (with "_" for "-") or a dotted one.

Instead of arms there may be a command of the user's, run on every node of every point as `testbed exec` runs it:

    command = ["python", "train.py", "--lr", "{lr}", "--seed", "{seed}"]
    [grid]
    bw = ["30mbit", "300mbit"]
    var.lr = ["1e-3", "3e-4"]                         # whatever stands in braces in the command
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

from pydantic import JsonValue

from testbed.config import STRICT, Preset
from testbed.config.arm import Arm
from testbed.errors import UsageError
from testbed.settings.network_flags import Asked
from testbed.targets import Target

__all__ = ["MOST_POINTS", "Excluded", "Grid", "Point", "flat", "points_of"]

MOST_POINTS = 10_000
"""The most points that a grid may have, before exclusion."""
_LINK = tuple(each.name for each in fields(Asked) if each.name != "share")


@dataclass(frozen=True)
class _Keys:
    """What may be varied."""

    flags: tuple[str, ...]
    dotted: Mapping[str, type | None]
    """What may stand behind the dot; None: anything."""
    words: str


_OF_ARMS = _Keys(
    (*_LINK, "preset", "target", "steps", "budget"),
    {"preset": Preset, "target": Target, "arm": Arm},
    "flags of testbed emulate, or preset., target. and arm.",
)
_OF_COMMAND = _Keys((*_LINK, "schedule"), {"var": None}, "flags of testbed exec, or var.")

Point = dict[str, JsonValue]
"""Value by key, the settings of every point among them."""


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A point that is not run."""

    point: Point
    reason: str


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What stands in the file."""

    __pydantic_config__ = STRICT

    title: str
    question: str = ""
    arms: tuple[Any, ...] = ()
    """Names, or tables: a name, what it is `like`, what is changed of that arm, and of the `preset` for it alone."""
    command: tuple[str, ...] = ()
    """Instead of arms: a program and its arguments, in which {NAME} stands for the key var.NAME and {seed} for a
    seed."""
    seeds: tuple[int, ...] = (0,)
    settings: dict[str, JsonValue] = field(default_factory=dict)
    """Settings of every point."""
    grid: dict[str, JsonValue] = field(default_factory=dict)
    """Lists of values by key; every value of one with every value of the others."""
    together: tuple[dict[str, JsonValue], ...] = ()
    """Lists of one length by key, gone through in step; each table is one axis more of the grid."""
    exclude: tuple[dict[str, JsonValue], ...] = ()
    """Values by key (one, or a list of them), and a `reason`."""
    check: tuple[dict[str, JsonValue], ...] = ()
    """Cells that are also trained step by step on their links, so that what was composed can be held against them: an
    `arm`, values of what is varied, of which the first cell that fits is taken, and if wanted `steps` and `seed`."""
    timed_nodes: int | None = None
    """Nodes that are built to time a step, where fewer than learn will do: with accounting pair every pair has a link
    of its own and all wait for the same, so that two stand for any number; None: as many as learn."""
    exact: str = "decentralised"
    """The arm that exchanges everything, against which the others are held."""
    control: str = "control"
    """The arm that exchanges nothing."""

    def __post_init__(self) -> None:
        if bool(self.arms) == bool(self.command):
            raise UsageError(
                "arms is empty: name at least one" if not self.arms else "give arms or a command, not both"
            )
        if not self.seeds:
            raise UsageError("seeds is empty: name at least one")
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds = {list(self.seeds)}: one of them stands there twice")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise UsageError(f"seeds = {list(self.seeds)}: they are whole numbers from 0 to {2**32 - 1}")
        keys = [key for axis in self.axes() for key in axis]
        for key in (*flat(self.settings), *keys):
            _check_key(key, _OF_COMMAND if self.command else _OF_ARMS)
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(f"'{key}' is varied twice: in [grid] and [[together]] a key may stand once")
        varied = {key: values for axis in self.axes() for key, values in axis.items()}
        for number, each in enumerate(self.exclude):
            _check_exclusion(each, varied, f"exclude[{number}]")
        for number, each in enumerate(self.check):
            _check_check(each, varied, self, f"check[{number}]")
        count = math.prod(len(next(iter(axis.values()))) for axis in self.axes())
        if count > MOST_POINTS:
            raise UsageError(f"this grid has {count:,} points, and {MOST_POINTS:,} are the most: take values out")

    def axes(self) -> list[dict[str, list[JsonValue]]]:
        """Each axis as lists of one length by key."""
        found = [{key: _values(key, values)} for key, values in flat(self.grid).items()]
        for number, table in enumerate(self.together):
            axis = {key: _values(key, values) for key, values in flat(table).items()}
            if len(lengths := {len(values) for values in axis.values()}) > 1:
                raise UsageError(f"together[{number}]: its lists have {sorted(lengths)} values; they need as many each")
            if axis:
                found.append(axis)
        return found


def points_of(sweep: Grid) -> tuple[list[Point], list[Excluded]]:
    """Every point in the order of the file, the last key varying fastest; and those that are left out, with reasons."""
    common = flat(sweep.settings)
    points, excluded = [], []
    for values in _combinations(sweep.axes()):
        reason = next((each["reason"] for each in sweep.exclude if _matches(each, values)), None)
        if reason is None:
            points.append(common | values)
        else:
            excluded.append(Excluded(point=values, reason=f"{reason}"))
    if not points:
        raise UsageError("every point of the grid is excluded: nothing is left to run")
    return points, excluded


def _combinations(axes: list[dict[str, list[JsonValue]]]) -> Iterator[Point]:
    steps = [[dict(zip(axis, values, strict=True)) for values in zip(*axis.values(), strict=True)] for axis in axes]
    for chosen in product(*steps):
        yield {key: value for part in chosen for key, value in part.items()}


def _matches(exclusion: Mapping[str, JsonValue], point: Point) -> bool:
    wanted = {key: value for key, value in flat(exclusion).items() if key != "reason"}
    return all(point[key] in _alternatives(point[key], value) for key, value in wanted.items())


def _alternatives(kind: JsonValue, value: JsonValue) -> list[JsonValue]:
    """One value or a list of them; where values are lists themselves, a list of lists."""
    nested = isinstance(kind, list)
    return (
        value if isinstance(value, list) and (not nested or all(isinstance(each, list) for each in value)) else [value]
    )


def flat(table: Mapping[str, JsonValue], before: str = "") -> dict[str, JsonValue]:
    """Dotted keys, whether they were written with dots, in tables, or quoted."""
    found: dict[str, JsonValue] = {}
    for key, value in table.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def _values(key: str, values: JsonValue) -> list[JsonValue]:
    if not isinstance(values, list):
        raise UsageError(f"'{key}' is {values!r}: a grid needs a list of values; one for all points goes to [settings]")
    if not values:
        raise UsageError(f"'{key}' is an empty list: give it at least one value")
    if len(values) > MOST_POINTS:
        raise UsageError(
            f"'{key}' has {len(values):,} values, and a grid can have {MOST_POINTS:,} points: take some out"
        )
    if infinite := [value for value in values if isinstance(value, float) and not math.isfinite(value)]:
        raise UsageError(
            f"'{key}' = {values}: {infinite[0]} is no finite number; if it is meant as a word, put it in quotes"
        )
    if any(values.count(value) > 1 for value in values):
        raise UsageError(f"'{key}' = {values}: one of them stands there twice")
    return values


def _check_key(key: str, keys: _Keys) -> None:
    first, _, rest = key.partition(".")
    if key in keys.flags:
        return
    if first in keys.dotted and rest:
        kind = keys.dotted[first]
        if kind is None or rest.partition(".")[0] in (each.name for each in fields(kind)):
            return
    known = [*keys.flags]
    known += [f"{name}.{each.name}" for name, kind in keys.dotted.items() if kind for each in fields(kind)]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UsageError(f"unknown key '{key}': a grid varies {keys.words}{hint}")


def _check_check(
    check: Mapping[str, JsonValue], varied: Mapping[str, list[JsonValue]], sweep: Grid, where: str
) -> None:
    if sweep.command:
        raise UsageError(f"{where}: a command is run as it is; checks are for arms")
    wanted = {key: value for key, value in flat(check).items() if key not in ("arm", "steps", "seed")}
    if "arm" not in check:
        raise UsageError(f'{where}: name an arm, and values of what is varied: arm = "{sweep.control}"')
    for key, value in wanted.items():
        if key not in varied:
            raise UsageError(f"{where}: '{key}' is not varied; this grid varies {', '.join(varied) or 'nothing'}")
        if value not in varied[key]:
            raise UsageError(f"{where}: {key} = {value!r} is none of its values, {varied[key]}")
    steps, seed = check.get("steps", 1), check.get("seed", sweep.seeds[0])
    if not isinstance(steps, int) or steps < 1:
        raise UsageError(f"{where}: steps = {steps!r}: a whole number from 1 on")
    if seed not in sweep.seeds:
        raise UsageError(f"{where}: seed = {seed!r} is none of {list(sweep.seeds)}")


def _check_exclusion(exclusion: Mapping[str, JsonValue], varied: Mapping[str, list[JsonValue]], where: str) -> None:
    reason = exclusion.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise UsageError(f'{where}: say why: reason = "…"')
    given = {key: value for key, value in flat(exclusion).items() if key != "reason"}
    if not given:
        raise UsageError(f"{where} names no key, and so excludes everything")
    for key, value in given.items():
        if key not in varied:
            raise UsageError(f"{where}: '{key}' is not varied; this grid varies {', '.join(varied) or 'nothing'}")
        for each in _alternatives(varied[key][0], value):
            if each not in varied[key]:
                raise UsageError(f"{where}: {key} = {each!r} is none of its values, {varied[key]}")
