"""Processes of ours that take orders as JSON lines on standard input and answer with JSON lines on standard output.

One protocol for ranks, learning and timing: `Child` is the parent's end of an order that is answered until the process
ends; `answering` and `ending_with_parent` are the process's own.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Child", "Message", "Reply", "answering", "ending_with_parent"]

Message = dict[str, Any]
"""A line of JSON."""
Reply = Callable[[Message], None]


class Child:
    """`python -m module`, whose complaints go to the log. It ends with our end of its standard input."""

    def __init__(self, module: str, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for us
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def answers(self, order: Message) -> Iterator[Message]:
        """What it says of the order, until it has no more to say; nothing if it ended before it could read it."""
        commands, answers = self.process.stdin, self.process.stdout
        assert commands is not None
        assert answers is not None
        with suppress(BrokenPipeError), commands, answers:
            commands.write(json.dumps(order) + "\n")
            commands.flush()
            for line in answers:
                yield json.loads(line)

    def status(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()


@contextmanager
def answering() -> Iterator[Reply]:
    """In such a process: what tells the parent something, from any thread. Whatever else is printed goes to the log."""
    lock = threading.Lock()
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)

        def reply(message: Message) -> None:
            with lock:
                answers.write(json.dumps(message) + "\n")

        yield reply


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
