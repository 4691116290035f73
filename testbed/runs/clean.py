"""End what carries our mark and has no run any more. Worlds clean up after themselves; this is for the impossible."""

import os
import signal
from pathlib import Path

from testbed.errors import UsageError
from testbed.runs.directory import RUNS, machine_lock

__all__ = ["clean"]

_MARK = b"TESTBED_REPLIES="


def clean(*, dry_run: bool) -> str:
    """What was found and done, in words. Refuses while a run is under way."""
    try:
        with machine_lock(share=False):
            processes = _marked()
            partial = [*RUNS.rglob("*.partial")] if RUNS.is_dir() else []
            if not dry_run:
                for pid in processes:
                    os.kill(pid, signal.SIGKILL)
                for path in partial:
                    path.unlink()
    except UsageError:
        raise UsageError("a run is under way on this machine; clean when it has ended") from None
    verb = "would end" if dry_run else "ended"
    if not processes and not partial:
        return "nothing of ours is left on this machine"
    return f"{verb} {len(processes)} processes; {len(partial)} half-written files removed"


def _marked() -> list[int]:
    """Our own user's processes whose environment carries the mark that every rank gets."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if entry.stat().st_uid != os.geteuid():
                    continue
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(variable.startswith(_MARK) for variable in environment.split(b"\0")):
                found.append(int(entry.name))
    return found
