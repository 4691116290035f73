"""Who has not been heard of: every rank says once a second that it lives, and listens for the others.

A rank that is stopped, hangs with its whole machine or is gone without closing its connections would let the others
wait for ever. What a rank says goes to the store through which the ranks met, not over the links that are measured.
A rank is listened for once it has spoken; how long it may take to come is for those who wait for it.

Calls into torch's store do not keep their limit where the path to it goes without a word (2.13.0: a rank had said
nothing after 200 s). So a clock in a thread of its own, which calls nobody, watches the thread that calls the store.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

__all__ = ["Clock", "Watchdog"]

_BEAT_SECONDS = 1.0
_PARTING_SECONDS = 3600.0
_STORE = "the store through which the ranks met has not answered for {:g} s: the path to it, or its host, is gone"


class Store(Protocol):
    """What `torch.distributed.TCPStore` can do."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Clock:
    """Ends this process, status 1, when what it was told to expect has not come in time; it calls nobody itself."""

    def __init__(self, rank: int, where: Callable[[], str], end: Callable[[int], None] = os._exit) -> None:
        self._rank, self._where, self._end = rank, where, end
        self._deadline: tuple[float, str] | None = None
        self._over = threading.Event()
        threading.Thread(target=self._run, name="clock", daemon=True).start()

    def expect(self, seconds: float, otherwise: str) -> None:
        """Within so many seconds this is called again, or `rest`; if not, the process ends and says `otherwise`."""
        self._deadline = time.monotonic() + seconds, otherwise

    def rest(self) -> None:
        """Nothing is expected."""
        self._deadline = None

    def close(self) -> None:
        """Nothing will be."""
        self.rest()
        self._over.set()

    def _run(self) -> None:
        every, stood_still, before = _BEAT_SECONDS / 4, 0.0, time.monotonic()
        known = self._deadline
        while not self._over.wait(every):
            now, deadline = time.monotonic(), self._deadline
            # what stops this thread (a signal, a busy machine) has stopped the watched one too
            stood_still = max(0.0, now - before - 2 * every) + (stood_still if deadline is known else 0.0)
            before, known = now, deadline
            if deadline is not None and now > deadline[0] + stood_still:
                give_up(self._rank, self._where(), deadline[1], self._end)
                return


def give_up(rank: int, where: str, why: str, end: Callable[[int], None]) -> None:
    """Say why, and end."""
    print(f"rank {rank}, {where}: {why}; the run ends", file=sys.stderr, flush=True)
    end(1)


class Watchdog:
    """`with Watchdog(…):` a thread that ends this process, status 1, when another rank has been silent too long.

    A block that ends well says that this rank is done, and nobody waits to hear of it any more.
    `store` must be a client of its own: one whose `get` waits for a key lets nobody else speak.
    """

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
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._beat = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._clock = Clock(rank, where, end)

    def __enter__(self) -> "Watchdog":
        self._expect()
        self._say(self._where())
        self._thread.start()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * _BEAT_SECONDS)
        if failed is None and not self._thread.is_alive():
            self._part()
        self._clock.close()

    def _expect(self) -> None:
        """An answer of the store."""
        self._clock.expect(self._silence, _STORE.format(self._silence))

    def _run(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            try:
                self._expect()
                self._say(self._where())
                why = self._hear()
            except Exception:  # the store has gone with the rank or the agent that kept it
                why = "the store through which the ranks met is gone"
            if why and not self._over.is_set():
                self._give_up(self._where(), why)
                return

    def _part(self) -> None:
        """Say that this rank is done; rank 0 stays until all are, for the store goes with it or with its agent."""
        deadline = time.monotonic() + _PARTING_SECONDS
        with suppress(Exception):  # the store has gone: nobody is left to be told
            self._expect()
            self._say("done")
            while self._rank == 0 and not self._all_done and time.monotonic() < deadline:
                time.sleep(_BEAT_SECONDS / 10)
                self._expect()
                self._say("done")
                if why := self._hear():
                    self._give_up("done", why)
                    return

    @property
    def _all_done(self) -> bool:
        return sum(said.endswith(b" done") for said, _ in self._heard.values()) == self._world - 1

    def _say(self, where: str) -> None:
        self._beat += 1
        self._store.set(f"alive/{self._rank}", f"{self._beat} {where}")

    def _hear(self) -> str | None:
        """What the others say; in words, who has been silent too long."""
        for rank in range(self._world):
            key = f"alive/{rank}"
            if rank != self._rank and self._store.check([key]):
                said, now = self._store.get(key), time.monotonic()
                before, since = self._heard.get(rank, (None, now))
                if said != before:
                    self._heard[rank] = said, now
                elif now - since > self._silence and not said.endswith(b" done"):
                    return (
                        f"rank {rank} has not been heard of for {self._silence:g} s (last: "
                        f"{said.partition(b' ')[2].decode()}); its log: {self._logs.format(rank=rank)}"
                    )
        return None

    def _give_up(self, where: str, why: str) -> None:
        self._clock.rest()
        give_up(self._rank, where, why, self._end)
