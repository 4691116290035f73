"""Who may run beside whom: tests that wait for slow links run side by side, a test that measures time runs alone.

The workers of one `make test` share a folder of two lock files (readers and one writer; the kernel lets go of a lock
if a worker dies). Runs of `testbed` hold this machine for themselves, so each worker has its own machine to hold.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest

__all__ = ["enter", "leave", "needs_a_turn", "tidy"]


def _place(suite: object) -> Path:
    return Path(tempfile.gettempdir()) / f"slowlink-testbed-tests.{suite}"


_PLACE = _place(os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid()))
_held: list[int] = []


def needs_a_turn(item: pytest.Item) -> bool:
    """Whether a test builds links, waits for deadlines or measures time."""
    return any(item.get_closest_marker(name) for name in ("world", "waits", "alone"))


def enter(*, alone: bool) -> None:
    """Wait until this test may run; `alone`: until no other that needs a turn does, which keeps later ones waiting."""
    leave()
    _PLACE.mkdir(exist_ok=True)
    gate, room = (os.open(_PLACE / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for name in ("gate", "room"))
    _held.append(room)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    finally:
        os.close(gate)


def leave() -> None:
    """Let go of the turn, if this worker has one."""
    while _held:
        os.close(_held.pop())


def tidy(config: pytest.Config) -> None:
    """Remove the locks of this suite, when all its tests have ended."""
    workers = getattr(config.pluginmanager.getplugin("dsession"), "nodemanager", None)
    shutil.rmtree(_place(getattr(workers, "testrunuid", os.getpid())), ignore_errors=True)
