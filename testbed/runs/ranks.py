"""The ranks of a run, one process per node, and the orders they are given.

Orders go to every rank at once and the answers are waited for together. Whatever goes wrong with one rank ends
the run with that rank's name and the end of its log.
"""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from emulation.nodes.base import Backend
from testbed.errors import RunFailed

__all__ = ["Ranks"]

_LOG_LINES = 12
_GRACE_SECONDS = 0.5
_END_SECONDS = 5.0
_WHITELIST = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")


class Ranks:
    """`with Ranks(backend, logs) as ranks: ranks.order("prepare", …)`."""

    def __init__(self, backend: Backend, logs: Path) -> None:
        self.backend = backend
        self.logs = logs
        self.progress: Callable[[int, int], None] = lambda *_: None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._replies: list[int] = []
        self._buffers: list[bytes] = []

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        for node in self.backend.network.nodes:
            self._start(node)
        try:
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
        for descriptor in self._replies:
            os.close(descriptor)
        self._processes, self._replies = [], []

    def _start(self, node: Any) -> None:
        read, write = os.pipe()
        environment = {key: os.environ[key] for key in _WHITELIST if key in os.environ}
        environment |= self.backend.environment(node)
        environment |= {
            "TESTBED_REPLIES": str(write),
            "TESTBED_COUNTER": json.dumps(self.backend.counter(node)),
        }
        with (self.logs / f"rank{node.index}.log").open("ab") as log:
            process = self.backend.popen(
                node,
                [sys.executable, "-m", "testbed.runs.rank"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
            )
        os.close(write)
        self._processes.append(process)
        self._replies.append(read)
        self._buffers.append(b"")

    @property
    def pids(self) -> list[int]:
        """Of the ranks, as this world numbers them."""
        return [process.pid for process in self._processes]

    def order(self, name: str, **arguments: Any) -> list[dict[str, Any]]:
        """Give every rank the same order; the answers by rank. Raises `RunFailed` if a rank is lost."""
        line = (json.dumps({"do": name, **arguments}) + "\n").encode()
        for rank, process in enumerate(self._processes):
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                self._lost([rank])
        return self._collect(name)

    def _collect(self, name: str) -> list[dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as selector:
            for rank, descriptor in enumerate(self._replies):
                selector.register(descriptor, selectors.EVENT_READ, rank)
            while len(answers) < len(self._replies):
                for key, _ in selector.select():
                    chunk = os.read(key.fd, 1 << 20)
                    if not chunk:
                        self._lost([key.data])
                    for message in self._messages(key.data, chunk):
                        self._take(name, key.data, message, answers)
        return [answers[rank] for rank in range(len(self._replies))]

    def _messages(self, rank: int, chunk: bytes) -> list[dict[str, Any]]:
        *lines, self._buffers[rank] = (self._buffers[rank] + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def _take(self, name: str, rank: int, message: dict[str, Any], answers: dict[int, dict[str, Any]]) -> None:
        if "progress" in message:
            self.progress(*message["progress"])
        elif "failed" in message:
            self._lost([rank])
        else:
            assert message["done"] == name, (name, message)
            answers[rank] = message

    def _lost(self, suspects: list[int]) -> None:
        """Say whose end was the first: others lose their connections to it and follow."""
        time.sleep(_GRACE_SECONDS)
        deadline = time.monotonic() + _END_SECONDS
        while self._processes[suspects[0]].poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        ended = {rank: process.poll() for rank, process in enumerate(self._processes)}
        by_signal = [rank for rank, status in ended.items() if status is not None and status < 0]
        by_error = [rank for rank, status in ended.items() if status not in (None, 0) and not self._follows(rank)]
        rank = (by_signal or by_error or suspects)[0]
        status = ended[rank]
        how = "is still there but failed" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was killed by signal {-status}"
        name = self.backend.network.nodes[rank].name
        raise RunFailed(
            f"rank {rank} on node {name} {how}; its log {self.logs / f'rank{rank}.log'} ends with:\n{self._tail(rank)}"
        )

    def _follows(self, rank: int) -> bool:
        return "lost its connection" in self._tail(rank)

    def _tail(self, rank: int) -> str:
        lines = (self.logs / f"rank{rank}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:]) or "(nothing)"
