"""An interactive shell on a node, with a terminal of its own: job control, editing and Ctrl-C work in it."""

import fcntl
import os
import select
import subprocess
import sys
import termios
import threading
import tty
from contextlib import suppress

from emulation.nodes.base import Backend
from emulation.spec.network import Node

__all__ = ["line_end", "shell_on"]


_ROUND_SECONDS = 0.2


def shell_on(backend: Backend, node: Node, stop: threading.Event) -> int:
    """Run the user's shell on `node` until it ends, or is ended because of `stop`; its exit status.

    Without a terminal it reads commands as given.
    """
    environment = {**os.environ, **backend.environment(node), "PS1": f"{node.name}$ "}
    if not sys.stdin.isatty():
        return _wait(backend.popen(node, [backend.shell], env=environment), stop)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = backend.popen(
        node,
        [backend.shell],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        _copy(ours, stop)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(ours)
    return _wait(process, stop)


def _wait(process: subprocess.Popen[bytes], stop: threading.Event) -> int:
    """The exit status of a process, which is ended if `stop` is set first."""
    while True:
        if stop.is_set():
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_ROUND_SECONDS)


def _copy(terminal: int, stop: threading.Event) -> None:
    """What the user types goes to the shell, what it says to the user, until it has ended or is to be."""
    while not stop.is_set():
        for ready in select.select([0, terminal], [], [], _ROUND_SECONDS)[0]:
            try:
                data = os.read(ready, 4096)
            except OSError:  # the shell's end has closed
                return
            if not data:
                return
            os.write(terminal if ready == 0 else 1, data)


def line_end(descriptor: int) -> bytes:
    """What ends a line there: a terminal that is raw, as it is while a shell has it, needs to be told to go back."""
    try:
        return b"\n" if termios.tcgetattr(descriptor)[1] & termios.OPOST else b"\r\n"
    except termios.error:
        return b"\n"
