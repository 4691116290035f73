"""The mark that every process of a world carries in its environment, so that what outlives its driver can be found.

    TESTBED_WORLD=<pid of the driver>:<when it started>

The driver is the process that entered the world. The kernel never starts two processes with the same number at the
same tick, so a mark whose driver is gone belongs to nobody any more.
"""

import os
from pathlib import Path

__all__ = ["VARIABLE", "lives", "mark", "orphans", "sees"]

VARIABLE = "TESTBED_WORLD"


def mark() -> dict[str, str]:
    """What to add to the environment of a process that is given its own; outside a world we are the driver."""
    return {VARIABLE: os.environ.get(VARIABLE) or _own()}


def _own() -> str:
    return f"{os.getpid()}:{_started(Path('/proc/self'))}"


def lives(name: str) -> bool:
    """Whether the driver of a mark lives, where it can be seen by its number."""
    number, _, started = name.partition(":")
    try:
        return _started(Path(f"/proc/{int(number)}")) == started
    except (OSError, ValueError):
        return False


def sees() -> str:
    """Whose processes' numbers we know: the pid namespace, in which alone `lives` means anything."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def orphans() -> list[int]:
    """Our own user's processes that carry a mark whose driver is gone; never those of the world that we are in."""
    processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    drivers = {name for name in map(_name, processes) if name} | {os.environ.get(VARIABLE)}
    found = []
    for entry in processes:
        try:
            if int(entry.name) == os.getpid() or entry.stat().st_uid != os.geteuid():
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        prefix = f"{VARIABLE}=".encode()
        marks = {each.removeprefix(prefix).decode(errors="replace") for each in variables if each.startswith(prefix)}
        if marks and not marks & drivers:
            found.append(int(entry.name))
    return sorted(found)


def _name(entry: Path) -> str | None:
    """What a process's mark is called if it is a driver: its number where it lives, and when it started."""
    try:
        status = (entry / "status").read_text(errors="replace")
        number = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
        return f"{number}:{_started(entry)}"
    except (OSError, StopIteration):
        return None


def _started(entry: Path) -> str:
    """Ticks since the machine started (proc(5), stat, field 22); the name, field 2, may hold blanks."""
    return (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
