"""End what carries our mark and has no run any more. Worlds clean up after themselves; this is for the impossible.

Namespaces, interfaces, shapers and rules live in worlds only and go with them, as do the files in a world's own
/dev/shm: on the host there is nothing of that kind to remove, and none is looked at. The two lock files in /tmp stay:
a free one locks nothing, and without it two runs could each hold a lock of its own.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

from emulation.mark import orphans
from testbed.errors import UsageError
from testbed.runs.directory import RUNS, machine_lock

__all__ = ["clean"]


def clean(*, dry_run: bool) -> str:
    """What was found and done, in words. Refuses while a run is under way."""
    try:
        with machine_lock(share=False):
            processes = orphans()
            partial = _half_written()
            if not dry_run:
                for pid in processes:
                    with suppress(ProcessLookupError):  # ended meanwhile
                        os.kill(pid, signal.SIGKILL)
                for path in partial:
                    path.unlink(missing_ok=True)
    except UsageError:
        raise UsageError("a run is under way on this machine; clean when it has ended") from None
    if not processes and not partial:
        return "nothing of ours is left on this machine"
    done = ("would end", "would remove") if dry_run else ("ended", "removed")
    return f"{done[0]} {_count(len(processes), 'process', 'processes')}; " + (
        f"{done[1]} {_count(len(partial), 'half-written file', 'half-written files')}"
    )


def _half_written() -> list[Path]:
    """Files of runs of this checkout that never got their name (`testbed.runs.directory.write_json`)."""
    return sorted(RUNS.rglob("*.json.partial")) if RUNS.is_dir() else []


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
