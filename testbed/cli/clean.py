"""Kill orphaned processes and remove containers and partial files that crashed runs left (`testbed clean`).

Namespaces, interfaces, shapers and rules live in worlds only and go with them, as do the files in a world's own
/dev/shm: on the host there is nothing of that kind to remove, and none is looked at (what `testbed shape` has made of
an interface stays until its --undo). The two lock files in /tmp stay: a free one locks nothing, and without it two runs
could each hold a lock of its own. Containers, and the folders through which they were handed their counters, are known
by a label and by their name, which say whose they were.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from emulation.errors import CapabilityError
from emulation.kernel.process_tag import orphans
from emulation.nodes.engine import engine, engine_errors, has_engine, orphaned, remove, rooms
from testbed.errors import UsageError
from testbed.formats import counted
from testbed.rundir.directory import RUNS
from testbed.rundir.machine_lock import machine_lock

__all__ = ["clean"]


def clean(*, dry_run: bool) -> str:
    """What was found and done, in words. Refuses while a run is under way."""
    try:
        with machine_lock(share=False):
            processes = orphans()
            partial, folders = _half_written(), rooms()
            containers, unseen = _containers()
            if not dry_run:
                remove(containers)
                for pid in processes:
                    with suppress(ProcessLookupError):  # ended meanwhile
                        os.kill(pid, signal.SIGKILL)
                for path in partial:
                    path.unlink(missing_ok=True)
    except UsageError:
        raise UsageError("a run is under way on this machine; clean when it has ended") from None
    ended, removed = ("would end", "would remove") if dry_run else ("ended", "removed")
    found = [f"{ended} {len(processes)} {'process' if len(processes) == 1 else 'processes'}"] if processes else []
    for things, name in ((containers, "container"), (folders, "temporary folder"), (partial, "half-written file")):
        found += [f"{removed} {counted(len(things), name)}"] if things else []
    return "; ".join([*(found or ["nothing of ours is left on this machine"]), *([unseen] if unseen else [])])


def _containers() -> tuple[list[Any], str]:
    """Whose driver is gone, on this machine's engine if there is one; why they could not be looked for, if so."""
    try:
        return orphaned(engine()), ""
    except (CapabilityError, *engine_errors()) as error:
        return [], f"containers were not looked for: {error}" if has_engine() else ""


def _half_written() -> list[Path]:
    """Files of runs of this checkout that never got their name (`testbed.rundir.directory.write_json`)."""
    return sorted(RUNS.rglob("*.json.partial")) if RUNS.is_dir() else []
