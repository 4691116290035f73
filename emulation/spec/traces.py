"""Recorded links: a rate, delay or loss that changes with time, read from a file.

.csv         a header of column names, then numbers, one line per change
.up, .down   Mahimahi's packet-delivery traces: each line is a millisecond at which one packet of 1504 bytes can
             be delivered; after the last line it begins again (Netravali et al., "Mahimahi: Accurate
             Record-and-Replay for HTTP", USENIX ATC 2015)
"""

import csv
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from emulation.errors import UsageError
from emulation.spec.events import MAX_EVENTS, Change, Schedule
from emulation.spec.network import SMALLEST_RATE_BPS, LinkSettings
from emulation.spec.settings import settings_of
from emulation.spec.units import format_delay

__all__ = ["INTERVAL_US", "MAHIMAHI_PACKET_BYTES", "MAX_FILE_BYTES", "read_csv", "read_mahimahi", "read_text"]

MAX_FILE_BYTES = 64 * 2**20
MAHIMAHI_PACKET_BYTES = 1504
INTERVAL_US = 100_000
"""Over how long a Mahimahi trace's deliveries are averaged, unless told."""
SHORTEST_INTERVAL_US, LONGEST_INTERVAL_US = 1_000, 60_000_000

_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,2})?")
_MILLISECONDS = re.compile(r"[0-9]{1,12}")


def _rate(value: float) -> int:
    return max(round(value), SMALLEST_RATE_BPS)


_COLUMNS: Mapping[str, tuple[str, Callable[[float], Any]]] = {
    "rate_bps": ("rate_bps", _rate),
    "rate_down_bps": ("rate_down_bps", _rate),
    "delay_us": ("delay_us", round),
    "loss_percent": ("loss", lambda percent: percent / 100),
}


def read_text(path: Path) -> str:
    """A small text file. Raises `UsageError` if it is not there, too large or no text."""
    try:
        if not path.is_file():
            raise UsageError(f"{path} is no file.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} is larger than 64 MiB; give a shorter one.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def read_csv(path: Path, nodes: tuple[int, ...] | None = None, repeat: bool = False) -> Schedule:
    """A trace of numbers, for all nodes or these.

    The header names `seconds` and at least one of `rate_bps`, `rate_down_bps`, `delay_us` (one way) and
    `loss_percent`; each line sets them from its time on. Lines that begin with # and empty lines are skipped. A rate
    of 0, or of less than a shaper can hold, is a link that carries almost nothing: 10 kbit/s. A delay of 0 also ends
    jitter and reordering, a loss of 0 its runs. Repeated, the last line holds as long as the one before it.
    """
    columns: list[str] = []
    events: list[Change] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path.name}, line {number}"
        cells = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
        if not columns:
            columns = _header(cells, where)
            continue
        if len(cells) != len(columns):
            raise UsageError(f"{where}: {len(cells)} values for the {len(columns)} columns {', '.join(columns)}.")
        for cell in cells:
            if not _NUMBER.fullmatch(cell):
                raise UsageError(f"{where}: {cell!r} is no number of 0 or more; type for example 1000000.")
        values = dict(zip(columns, map(float, cells), strict=True))
        at = values.pop("seconds")
        if events and at < events[-1].at_seconds:
            raise UsageError(f"{where}: {at:g} s comes after {events[-1].at_seconds:g} s; times must not decrease.")
        settings = settings_of({_COLUMNS[name][0]: _COLUMNS[name][1](value) for name, value in values.items()})
        _check_count(len(events) + 1, path, "give a shorter one")
        try:
            events.append(Change(at_seconds=at, nodes=nodes, settings=settings))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    if not events:
        raise UsageError(f"{path.name} holds no trace; write a line of names, e.g. seconds,rate_bps, then numbers.")
    return Schedule(events=tuple(events), repeat_seconds=_period(events, path) if repeat else None)


def _header(cells: list[str], where: str) -> list[str]:
    for cell in cells:
        if cell != "seconds" and cell not in _COLUMNS:
            raise UsageError(f"{where}: unknown column {cell!r}; allowed are seconds, {', '.join(_COLUMNS)}.")
        if cells.count(cell) > 1:
            raise UsageError(f"{where}: the column {cell} is there twice.")
    if "seconds" not in cells or len(cells) < 2:
        raise UsageError(f"{where}: a trace needs the column seconds and at least one of {', '.join(_COLUMNS)}.")
    return cells


def _period(events: list[Change], path: Path) -> float:
    times = sorted({event.at_seconds for event in events})
    if len(times) < 2:
        raise UsageError(f"{path.name} has one time only, so it cannot repeat; leave repeat out.")
    return round(2 * times[-1] - times[-2], 9)


def _check_count(count: int, path: Path, remedy: str) -> None:
    if count > MAX_EVENTS:
        raise UsageError(f"{path.name} makes more than {MAX_EVENTS} events; {remedy}.")


def read_mahimahi(
    up: Path | None,
    down: Path | None,
    interval_us: int = INTERVAL_US,
    nodes: tuple[int, ...] | None = None,
) -> tuple[Schedule, ...]:
    """Mahimahi traces of what nodes send (`up`) and receive (`down`), each with its own repetition.

    The rate of each interval is packets × 1504 × 8 / interval (the last interval of a trace may be shorter); with none,
    10 kbit/s. A delivery at t ms belongs to the interval that ends at or after t.
    """
    if not SHORTEST_INTERVAL_US <= interval_us <= LONGEST_INTERVAL_US:
        raise UsageError(
            f"an interval of {format_delay(interval_us)} was given; allowed are "
            f"{format_delay(SHORTEST_INTERVAL_US)} to {format_delay(LONGEST_INTERVAL_US)}, for example 100ms."
        )
    read = {
        name: _bins(path, interval_us) for name, path in (("rate_bps", up), ("rate_down_bps", down)) if path is not None
    }
    if len(read) == 2 and len({period for _, period in read.values()}) == 1:
        (first, period), (second, _) = read.values()
        both: list[LinkSettings] = [
            {"rate_bps": up_bps, "rate_down_bps": down_bps} for up_bps, down_bps in zip(first, second, strict=True)
        ]
        return (_binned(both, period, interval_us, nodes),)
    return tuple(
        _binned([settings_of({name: rate}) for rate in rates], period, interval_us, nodes)
        for name, (rates, period) in read.items()
    )


def _bins(path: Path, interval_us: int) -> tuple[list[int], int]:
    """Rates in bit/s of each interval, and the trace's length in microseconds."""
    times: list[int] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        if not _MILLISECONDS.fullmatch(line.strip()):
            raise UsageError(
                f"{path.name}, line {number}: {line.strip()[:40]!r} is no whole number of milliseconds, "
                "which a Mahimahi trace has on every line."
            )
        times.append(int(line) * 1000)
    for earlier, later in pairwise(times):
        if later < earlier:
            raise UsageError(
                f"{path.name}: {later // 1000} ms comes after {earlier // 1000} ms; times must not decrease."
            )
    if not times or not times[-1]:
        raise UsageError(f"{path.name} lasts no time; a Mahimahi trace ends at its last line, which must be above 0.")
    period = times[-1]
    count = -(-period // interval_us)
    _check_count(count, path, "give a longer interval or a shorter trace")
    packets = [0] * count
    for at in times:
        packets[max(at - 1, 0) // interval_us] += 1
    lengths = [min(interval_us, period - number * interval_us) for number in range(count)]
    bits = MAHIMAHI_PACKET_BYTES * 8 * 10**6
    return [_rate(n * bits / length) for n, length in zip(packets, lengths, strict=True)], period


def _binned(bins: list[LinkSettings], period_us: int, interval_us: int, nodes: tuple[int, ...] | None) -> Schedule:
    """A change wherever an interval differs from the one before it."""
    events = [
        Change(at_seconds=number * interval_us / 10**6, nodes=nodes, settings=settings)
        for number, settings in enumerate(bins)
        if number == 0 or settings != bins[number - 1]
    ]
    return Schedule(events=tuple(events), repeat_seconds=period_us / 10**6 if len(events) > 1 else None)
