"""Processes that take an order as a JSON line on standard input and answer with JSON lines on standard output."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ending_with_parent", "start_child"]


def start_child(module: str, log: Path) -> subprocess.Popen[str]:
    """`python -m module`, whose complaints go to the log. It ends with our end of its standard input."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for us
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """In such a process, once it has read its order: end with status 1 when standard input does, unless the work within
    is over by then; whoever has read all answers closes it, too."""
    over = threading.Event()

    def watch() -> None:
        while os.read(0, 1 << 16):
            pass
        if not over.is_set():
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    try:
        yield
    finally:
        over.set()
