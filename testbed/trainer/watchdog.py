"""Who has not been heard of: every rank says once a second that it lives, and listens for the others.

A rank that is stopped, hangs with its whole machine or is gone without closing its connections would let the others
wait for ever. What a rank says goes to the store through which the ranks met, not over the links that are measured.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Watchdog"]

_BEAT_SECONDS = 1.0


class Store(Protocol):
    """What `torch.distributed.TCPStore` can do."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Watchdog:
    """`with Watchdog(…):` a thread that ends this process, status 1, when another rank has been silent too long."""

    def __init__(
        self,
        store: Store,
        rank: int,
        world: int,
        *,
        silence_seconds: float,
        where: Callable[[], str],
        logs: str,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._silence, self._where, self._logs, self._end = silence_seconds, where, logs, end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * _BEAT_SECONDS)

    def _run(self) -> None:
        heard = {rank: (b"", time.monotonic()) for rank in range(self._world) if rank != self._rank}
        beat = 0
        while not self._over.wait(_BEAT_SECONDS):
            beat += 1
            try:
                self._store.set(f"alive/{self._rank}", f"{beat} {self._where()}")
                for rank, (said, _) in heard.items():
                    key = f"alive/{rank}"
                    now = self._store.get(key) if self._store.check([key]) else b""
                    if now != said:
                        heard[rank] = (now, time.monotonic())
            except Exception:  # the store has gone with the rank or the agent that kept it
                if not self._over.is_set():
                    self._give_up("the store through which the ranks met is gone")
                return
            for rank, (said, since) in heard.items():
                if time.monotonic() - since > self._silence and not said.endswith(b"done"):
                    last = said.partition(b" ")[2].decode() or "nothing yet"
                    self._give_up(
                        f"rank {rank} has not been heard of for {self._silence:g} s (last: {last}); its log: "
                        f"{self._logs.format(rank=rank)}"
                    )
                    return

    def _give_up(self, why: str) -> None:
        print(f"rank {self._rank}, {self._where()}: {why}; the run ends", file=sys.stderr, flush=True)
        self._end(1)
