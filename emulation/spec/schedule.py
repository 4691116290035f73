"""How a network changes in time, from a file.

    .toml        [[at]] tables with link settings or a fault, and [[trace]] tables
    .csv         a trace of numbers                            (emulation/spec/traces.py)
    .up, .down   Mahimahi traces                               (emulation/spec/traces.py)

docs/schedules.md has an example of each.
"""

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from emulation.errors import UsageError
from emulation.spec.events import Change, Fault, FaultKind, Schedule
from emulation.spec.network import Network
from emulation.spec.settings import SETTINGS, parse_settings, refuse_unknown
from emulation.spec.traces import INTERVAL_US, read_csv, read_mahimahi, read_text
from emulation.spec.units import parse_delay, parse_duration

__all__ = ["Change", "Fault", "FaultKind", "Schedule", "load_schedule"]

_ZERO = re.compile(r"0+(\.0+)?\s*(s|min|h)")
_LINK_SETTINGS = tuple(name for name in SETTINGS if name != "queue")
_AT_KEYS = ("time", "nodes", "pairs", *_LINK_SETTINGS, "fault", "groups")
_TRACE_KEYS = ("file", "up", "down", "nodes", "repeat", "interval")

Table = dict[str, Any]
"""As it stands in the file: nothing of it is checked yet."""
T = TypeVar("T")


def load_schedule(path: str | Path, network: Network) -> Schedule:
    """The schedule in a file, checked against the network that it will play on.

    Of Mahimahi traces, either file may be named; where a sibling with the other suffix exists, it is used too (with
    accounting "pair" only the one up, for a pair has no rate down). Raises `UsageError` that names the file and the
    place in it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".toml":
        schedule = _read_toml(path, network)
    elif suffix == ".csv":
        schedule = read_csv(path)
    elif suffix in (".up", ".down"):
        schedule = Schedule(traces=read_mahimahi(*_siblings(path, network)))
    else:
        raise UsageError(
            f"{path.name!r} is no schedule; allowed are files that end in .toml, .csv, .up or .down. Give a list of "
            f"milliseconds, one for each packet that can be delivered (Mahimahi's), the ending .up: "
            f"mv {shlex.quote(path.name)} {shlex.quote(path.stem + '.up')}"
        )
    try:
        schedule.check(network)
    except UsageError as error:
        raise UsageError(f"{path.name}: {error}") from None
    return schedule


def _siblings(path: Path, network: Network) -> tuple[Path | None, Path | None]:
    """The traces up and down beside each other; None for the one that is not there."""
    named_up = path.suffix.lower() == ".up"
    if network.accounting == "pair":
        if not named_up:
            raise _no_rate_down(path.name)
        return path, None
    other = path.with_suffix(".down" if named_up else ".up")
    found = other if other.is_file() else None
    return (path, found) if named_up else (found, path)


def _no_rate_down(name: str) -> UsageError:
    return UsageError(
        f"{name} is a rate down, and with accounting 'pair' there is none; give a trace up, or type accounting nic."
    )


def _read_toml(path: Path, network: Network) -> Schedule:
    try:
        data = tomllib.loads(read_text(path))
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name}: not valid TOML: {error}.") from None
    refuse_unknown(data, ("at", "trace", "repeat_every"), path.name)
    repeat = data.get("repeat_every")
    try:
        repeat_seconds = None if repeat is None else parse_duration(repeat)
    except UsageError as error:
        raise UsageError(f"{path.name}: repeat_every: {error}") from None
    events = [_within(where, _event, table, where) for where, table in _tables(data, "at", path)]
    traces = [
        trace
        for where, table in _tables(data, "trace", path)
        for trace in _within(where, _traces, table, where, path.parent, network)
    ]
    if not events and not traces:
        raise UsageError(f"{path.name} holds no event; write at least one [[at]] or [[trace]] table.")
    if repeat_seconds is not None and not events:
        raise UsageError(
            f"{path.name}: repeat_every repeats [[at]] tables, and there are none; a trace has its own repeat."
        )
    events.sort(key=lambda event: event.at_seconds)
    return _within(
        path.name, lambda: Schedule(events=tuple(events), repeat_seconds=repeat_seconds, traces=tuple(traces))
    )


def _within(where: str, make: Callable[..., T], *given: Any) -> T:
    """What `make` gives; its errors begin with the place, once."""
    try:
        return make(*given)
    except UsageError as error:
        raise UsageError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _tables(data: Table, key: str, path: Path) -> list[tuple[str, Table]]:
    """Every [[key]] table and where it is: "file.toml, [[at]] 2"."""
    tables = data.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path.name}: {key} must be tables; write [[{key}]], with two brackets, above each.")
    return [(f"{path.name}, [[{key}]] {number}", table) for number, table in enumerate(tables, 1)]


def _event(table: Table, where: str) -> Change | Fault:
    refuse_unknown(table, _AT_KEYS, where)
    if "time" not in table:
        raise UsageError('time is missing; write for example time = "30s".')
    seconds = _time(table["time"])
    settings = {name: value for name, value in table.items() if name in _LINK_SETTINGS}
    if "fault" in table:
        for name in ("pairs", *settings):
            if name in table:
                raise UsageError(f"fault and {name} were given; write two [[at]] tables.")
        return Fault(
            at_seconds=seconds,
            kind=table["fault"],
            nodes=_indexes(table.get("nodes", []), "nodes"),
            groups=tuple(_indexes(group, "groups") for group in _list(table.get("groups", []), "groups")),
        )
    if "groups" in table:
        raise UsageError('groups were given without a fault; write fault = "partition" too.')
    if not settings:
        raise UsageError(f"neither a fault nor a link setting was given; allowed are {', '.join(_LINK_SETTINGS)}.")
    return Change(
        at_seconds=seconds,
        nodes=_indexes(table["nodes"], "nodes") if "nodes" in table else None,
        pairs=_pairs(table["pairs"]) if "pairs" in table else None,
        settings=parse_settings(settings, where),
    )


def _traces(table: Table, where: str, folder: Path, network: Network) -> tuple[Schedule, ...]:
    refuse_unknown(table, _TRACE_KEYS, where)
    nodes = _indexes(table["nodes"], "nodes") if "nodes" in table else None
    if nodes == ():
        raise UsageError("nodes = [] names none; name at least one, or leave nodes out for all.")
    files = {name: _file(table[name], name, folder) for name in ("file", "up", "down") if name in table}
    if "file" in files:
        if len(files) > 1 or "interval" in table:
            raise UsageError(
                "file is a .csv trace; up, down and interval belong to Mahimahi traces, in a table of their own."
            )
        if files["file"].suffix.lower() != ".csv":
            raise UsageError(f"file = {table['file']!r} is no .csv trace; name Mahimahi traces with up = and down =.")
        repeat = table.get("repeat", False)
        if not isinstance(repeat, bool):
            raise UsageError(f"repeat = {repeat!r} was given; type true or false, without quotes.")
        return (read_csv(files["file"], nodes, repeat),)
    if not files:
        raise UsageError('no file was named; write file = "x.csv", or up = "x.up" and down = "x.down".')
    if "repeat" in table:
        raise UsageError("a Mahimahi trace always repeats; leave repeat out.")
    if "down" in files and network.accounting == "pair":
        raise _no_rate_down(files["down"].name)
    interval_us = parse_delay(table["interval"]) if "interval" in table else INTERVAL_US
    return read_mahimahi(files.get("up"), files.get("down"), interval_us, nodes)


def _file(name: Any, key: str, folder: Path) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise UsageError(f'{key} = {name!r} is no file name; write for example {key} = "x.csv".')
    return folder / name


def _time(text: Any) -> float:
    """Seconds; unlike other durations it may be "0s"."""
    return 0.0 if isinstance(text, str) and _ZERO.fullmatch(text.strip()) else parse_duration(text)


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{key} = {value!r} is no list; write for example {_EXAMPLES[key]}.")
    return value


def _indexes(value: Any, key: str) -> tuple[int, ...]:
    for index in _list(value, key):
        if isinstance(index, bool) or not isinstance(index, int):
            raise UsageError(f"{key}: {index!r} is no node's number; write for example {_EXAMPLES[key]}.")
    return tuple(value)


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    pairs = [_indexes(pair, "pairs") for pair in _list(value, "pairs")]
    for pair in pairs:
        if len(pair) != 2:
            raise UsageError(f"pairs: {list(pair)} are not two nodes; write for example {_EXAMPLES['pairs']}.")
    return tuple((first, second) for first, second in pairs)


_EXAMPLES = {"nodes": "nodes = [0, 1]", "pairs": "pairs = [[0, 1], [1, 0]]", "groups": "groups = [[0, 1], [2, 3]]"}
