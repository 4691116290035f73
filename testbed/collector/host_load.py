"""Whether emulator and machine kept up during a step: what makes it invalid, and what makes it suspect.

    late      packets that the delay line released more than 1 ms after         above 5 %: invalid, 1 %: suspect
              they were due
    stall     the latest of them, if it was in this step                        above 50 ms and 5 % of it: invalid
    steal     time that the hypervisor gave to other machines (/proc/stat)      above 5 %: suspect
    pressure  time in which some process waited for a processor (PSI)           above 60 %: suspect
    waiting   time in which this very rank waited for one (schedstat)           above 10 %: suspect

Only the first two touch what the link did; the others tell why a step may have taken longer than on a quiet machine,
if they took more of it than a busy machine's grain, 50 ms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GRAIN_SECONDS", "Fidelity", "Pulse", "judge"]

GRAIN_SECONDS = 0.05
"""Of a busy machine: a shorter difference means nothing."""

_LATE, _SOME_LATE, _STEAL, _PRESSURE, _WAITING = 0.05, 0.01, 0.05, 0.60, 0.10
_FEWEST_LATE = 5
_STALL, _STALL_SECONDS = 0.05, 0.050
_STEAL_FIELD = 7  # of the line "cpu" in /proc/stat, proc(5)


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """Counters at one moment. None: this machine does not keep them."""

    released: int
    late: int
    worst_ns: int
    """Of all since the start."""
    dropped: int = 0
    """Packets of all nodes that found the delay line's own queues full."""
    steal_ticks: int
    ticks: int
    pressure_us: int | None
    waiting_ns: int | None


class Fidelity:
    """Reads the pulse of one rank's node. `delays` gives the delay line's counters, all 0 where there is none."""

    def __init__(self, delays: Callable[[], Mapping[str, int]]) -> None:
        self._delays = delays

    def read(self) -> Pulse:
        """Now; some tens of microseconds."""
        delays = self._delays()
        ticks = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
        pressure = _read("/proc/pressure/cpu").partition("total=")[2].split("\n", 1)[0]
        waiting = _read("/proc/self/schedstat").split()
        return Pulse(
            released=delays["released"],
            late=delays["late"],
            worst_ns=delays["worst_ns"],
            dropped=delays["dropped"],
            steal_ticks=ticks[_STEAL_FIELD],
            ticks=sum(ticks[: _STEAL_FIELD + 1]),
            pressure_us=int(pressure) if pressure else None,
            waiting_ns=int(waiting[1]) if len(waiting) == 3 else None,
        )


def judge(before: Pulse, now: Pulse, seconds: float) -> tuple[dict[str, float | None], list[str], list[str]]:
    """Shares of a step of so many seconds, what makes it invalid, and what makes it suspect."""
    released, late = now.released - before.released, now.late - before.late
    stall_seconds = now.worst_ns / 1e9 if now.worst_ns > before.worst_ns else 0.0
    shares: dict[str, float | None] = {
        "late_share": late / released if released else 0.0,
        "steal_share": (now.steal_ticks - before.steal_ticks) / max(1, now.ticks - before.ticks),
        "pressure_share": _share(before.pressure_us, now.pressure_us, seconds * 1e6),
        "waiting_share": _share(before.waiting_ns, now.waiting_ns, seconds * 1e9),
    }
    invalid = []
    if late >= _FEWEST_LATE and late > _LATE * released:
        invalid.append(f"delay line: {late} of {released} packets were more than 1 ms late")
    if stall_seconds > max(_STALL_SECONDS, _STALL * seconds):
        invalid.append(f"delay line: a packet was {stall_seconds * 1e3:.0f} ms late")
    limits = {
        "late_share": (_SOME_LATE, "of the delay line's packets were more than 1 ms late"),
        "steal_share": (_STEAL, "of the machine's time went to other machines"),
        "pressure_share": (_PRESSURE, "of the time some process waited for a processor"),
        "waiting_share": (_WAITING, "of the time this rank waited for a processor"),
    }
    least = {key: 0.0 if key == "late_share" else GRAIN_SECONDS / max(seconds, 1e-9) for key in limits}
    suspect = [
        f"{shares[key]:.0%} {what}"
        for key, (limit, what) in limits.items()
        if (shares[key] or 0.0) > max(limit, least[key])
    ]
    return {key: share if share is None else round(share, 4) for key, share in shares.items()}, invalid, suspect


def _share(before: int | None, now: int | None, whole: float) -> float | None:
    return None if before is None or now is None else (now - before) / max(1.0, whole)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
