"""The ranks of a run, one process per node, and the orders they are given.

Orders go to every rank at once and the answers are waited for together. Whatever goes wrong with one rank ends
the run with that rank's name and the end of its log.
"""

import json
import os
import select
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from emulation.nodes.base import Backend
from testbed.child import Message
from testbed.errors import RunFailed
from testbed.records import received

__all__ = ["Ranks"]

_LOG_LINES = 12
_GRACE_SECONDS = 0.5
_WATCH_SECONDS = 1.0
_END_SECONDS = 5.0
SILENCE_SECONDS = 20.0
"""A rank that has said nothing for so long, not even that it lives, ends the run."""
_ROOM_BYTES = 1 << 20
"""Less is a full disk."""
_WHITELIST = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")


T = TypeVar("T")


class Ranks:
    """`with Ranks(backend, logs) as ranks: ranks.order("prepare", …)`."""

    def __init__(self, backend: Backend, logs: Path) -> None:
        self.backend = backend
        self.logs = logs
        self.progress: Callable[[int, int], None] = lambda *_: None
        self.watch: Callable[[], None] = backend.check_alive
        """Called while ranks are at work, about once a second; raises what must end the run."""
        self._watched_at = 0.0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._replies: list[int] = []
        self._buffers: list[bytes] = []
        self._heard_at: list[float] = []
        """When each rank last said anything, by this process's monotonic clock."""
        self._reasons: dict[int, Message] = {}
        """What failing ranks said, by rank."""

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            for node in self.backend.network.nodes:
                self._start(node)
            self._collect("start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
        self._processes, self._replies = [], []

    def _start(self, node: Any) -> None:
        environment = {key: os.environ[key] for key in _WHITELIST if key in os.environ}
        environment |= self.backend.environment(node)
        environment |= {
            "TESTBED_COUNTER": json.dumps({**self.backend.counter(node), "mtu": self.backend.network.mtu_of(node)}),
        }
        with (self.logs / f"rank{node.index}.log").open("ab") as log:
            process = self.backend.popen(
                node,
                [self.backend.python, "-P", "-m", "testbed.driver.rank"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert process.stdout is not None
        self._processes.append(process)
        self._replies.append(process.stdout.fileno())
        self._buffers.append(b"")

    def order(self, name: str, **arguments: Any) -> list[Message]:
        """Give every rank the same order; the answers by rank. Raises `RunFailed` if a rank is lost."""
        self._watch()
        line = (json.dumps({"do": name, **arguments}) + "\n").encode()
        for rank, process in enumerate(self._processes):
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                self._lost([rank])
        return self._collect(name)

    def ask(self, kind: type[T], name: str, **arguments: Any) -> list[T]:
        """Order, and what each rank answers as a record of this kind."""
        return [received(kind, answer, f"rank {rank}") for rank, answer in enumerate(self.order(name, **arguments))]

    def _collect(self, name: str) -> list[Message]:
        answers: dict[int, Message] = {}
        self._heard_at = [time.monotonic()] * len(self._replies)
        with selectors.DefaultSelector() as selector:
            for rank, descriptor in enumerate(self._replies):
                selector.register(descriptor, selectors.EVENT_READ, rank)
            while len(answers) < len(self._replies):
                ready = selector.select(_WATCH_SECONDS)
                self._watch()
                now = time.monotonic()
                for key, _ in ready:
                    self._heard_at[key.data] = now
                    chunk = os.read(key.fd, 1 << 20)
                    if not chunk:
                        self._lost([key.data])
                    for message in self._messages(key.data, chunk):
                        self._take(name, key.data, message, answers)
                silent = [rank for rank, at in enumerate(self._heard_at) if now - at > SILENCE_SECONDS]
                if silent and name != "start":  # a process that still imports cannot say anything yet
                    self._lost(silent)
        return [answers[rank] for rank in range(len(self._replies))]

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._watched_at >= _WATCH_SECONDS:
            self._watched_at = now
            self.watch()

    def _messages(self, rank: int, chunk: bytes) -> list[Message]:
        *lines, self._buffers[rank] = (self._buffers[rank] + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def _take(self, name: str, rank: int, message: Message, answers: dict[int, Message]) -> None:
        if "alive" in message:
            return
        if "progress" in message:
            self.progress(*message["progress"])
        elif "failed" in message:
            self._reasons[rank] = message
            self._lost([rank])
        else:
            done = message.pop("done")
            assert done == name, (name, done, message)
            answers[rank] = message

    def _lost(self, suspects: list[int]) -> None:
        """Say whose end was the first: others lose their connections to it and follow."""
        time.sleep(_GRACE_SECONDS)
        deadline = time.monotonic() + _END_SECONDS
        while self._processes[suspects[0]].poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        self._hear_last_words()
        ended = {rank: process.poll() for rank, process in enumerate(self._processes)}
        by_signal = [rank for rank, status in ended.items() if status is not None and status < 0]
        of_its_own = [rank for rank, said in self._reasons.items() if not said.get("follows")]
        silent = [rank for rank, status in ended.items() if status not in (None, 0) and rank not in self._reasons]
        rank = (by_signal or of_its_own or silent or suspects)[0]
        raise RunFailed(
            f"rank {rank} on node {self.backend.network.nodes[rank].name} {self._how(rank, ended[rank])}; "
            f"its log {self.logs / f'rank{rank}.log'} ends with:\n{self._tail(rank)}{_disk_is_full(self.logs)}"
        )

    def _hear_last_words(self) -> None:
        """Take what other ranks have said since, without waiting."""
        for rank, descriptor in enumerate(self._replies):
            while select.select([descriptor], [], [], 0)[0] and (chunk := os.read(descriptor, 1 << 20)):
                for message in self._messages(rank, chunk):
                    if "failed" in message:
                        self._reasons[rank] = message

    def _how(self, rank: int, status: int | None) -> str:
        if rank in self._reasons:
            return f"failed: {self._reasons[rank]['failed']}"
        if status is None:
            return f"has not been heard of for {SILENCE_SECONDS:g} s"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def _tail(self, rank: int) -> str:
        lines = (self.logs / f"rank{rank}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:]) or "(nothing)"


def _disk_is_full(folder: Path) -> str:
    """A rank that could not write could not say so either."""
    if shutil.disk_usage(folder).free >= _ROOM_BYTES:
        return ""
    return f"\nthe disk that holds {folder} is full: make room, and type the same again"
