"""Plays a schedule on a living network, and records what took effect when.

with Player(backend, schedule) as player:
    player.start()        # time zero
    …
player.events             # [{"at_seconds": 30.0, "applied_seconds": 30.0004, "what": "all links: bw 10mbit"}, …]
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from emulation.errors import EmulationError, UsageError
from emulation.spec.events import Change, EventFacts, Fault, Schedule
from emulation.spec.network import Network, Node

__all__ = ["Playable", "Player", "Programs"]

LONGEST_WAIT_SECONDS = 3600.0
AHEAD_SECONDS = 0.5
"""How long before its time the delay line's relay is told of a quick change, so that nobody's lateness matters."""
READBACK_SECONDS = 0.5
"""How often at most all is read back meanwhile."""


class Playable(Protocol):
    """What the player needs of a network's backend. All of it is called from the player's own thread."""

    @property
    def network(self) -> Network:
        """As it is now."""
        ...

    def change(self, network: Network, at_ns: int | None = None) -> None:
        """Apply links that differ; returns when the kernel has them. `at_ns`, while rates are the delay line's: at that
        time of CLOCK_MONOTONIC; returns when its relay knows."""
        ...

    def follow(self, highest: Network | None) -> None:
        """Let rates change quickly from now on, up to those of `highest`; None: no more."""
        ...

    def check_readback(self) -> Any:
        """Raise if the kernel does not have what was asked for."""
        ...

    def link_down(self, node: Node) -> None:
        """Cut a node off."""
        ...

    def link_up(self, node: Node) -> None:
        """Undo `link_down`."""
        ...

    def partition(self, groups: Sequence[Sequence[Node]]) -> None:
        """Let nodes reach those of their own group only."""
        ...

    def heal(self) -> None:
        """Undo `partition`."""
        ...

    def freeze(self, node: Node) -> None:
        """Stop a node's programs."""
        ...

    def thaw(self, node: Node) -> None:
        """Undo `freeze`."""
        ...

    def kill(self, node: Node) -> None:
        """End a node's programs at once."""
        ...


class Programs(Protocol):
    """Programs on nodes that can be started again."""

    def restart(self, node: Node) -> None:
        """Start a node's program anew."""
        ...


class Player:
    """A thread that applies each event at its time.

    Changes that are due together, at the same time or because an earlier event took long, reach the kernel as one:
    each is recorded, with the same `applied_seconds`, once the kernel's read-back says so too. Rates that change
    quickly are the delay line's while this plays: its relay is told ahead and changes them at their times, and all is
    read back twice a second. An error ends playing; `check` and `close` raise it.
    """

    def __init__(
        self,
        backend: Playable,
        schedule: Schedule,
        *,
        on_event: Callable[[EventFacts], None] | None = None,
        programs: Programs | None = None,
    ) -> None:
        """`on_event` is called from the player's thread with each record.

        Raises `UsageError` if the schedule does not fit the network or cannot be played.
        """
        schedule.check(backend.network)
        if programs is None and "restart" in schedule.kinds():
            raise UsageError(
                "the schedule restarts programs, which only programs under exec can do; "
                "leave restart out, or run the program with testbed exec."
            )
        self._backend = backend
        self.schedule = schedule
        self._on_event = on_event
        self._programs = programs
        self._events: list[EventFacts] = []
        self._stop = threading.Event()
        self._error: EmulationError | None = None
        self._thread: threading.Thread | None = None
        self._zero_ns = 0
        self._highest = schedule.highest(backend.network) if schedule.quick() else None
        """Of links whose rates change quickly."""
        self._told: deque[tuple[float, Change | Fault, Network]] = deque()
        """When an event takes effect that the relay knows of and that is not yet recorded, and the network then."""
        self._now = backend.network
        """As the last recorded event left it."""
        self._read_at = -READBACK_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._end()
        if error is None:
            self.check()
        elif self._error is not None and self._error is not error:
            error.add_note(str(self._error))

    def start(self) -> None:
        """Fix time zero and begin."""
        if self._thread is not None:
            raise EmulationError("a schedule is already playing; it plays once.")
        if self._highest is not None:
            self._backend.follow(self._highest)
        self._zero_ns = time.monotonic_ns()
        self._thread = threading.Thread(target=self._play, name="schedule", daemon=True)
        self._thread.start()

    @property
    def events(self) -> list[EventFacts]:
        """What has taken effect so far: JSON-able, times in seconds after time zero.

        `at_seconds` was asked for, `applied_seconds` is when the kernel had it, `what` tells it to people; the rest
        describes the event.
        """
        return list(self._events)

    @property
    def finished(self) -> bool:
        """Whether no event is left, or an error ended it."""
        return self._thread is not None and not self._thread.is_alive()

    def check(self) -> None:
        """Raise `EmulationError` if playing has failed."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop playing and wait for an event that is being applied; then as `check`. The network stays as it is."""
        self._end()
        self.check()

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            if self._highest is not None and self._error is None:
                try:
                    self._backend.change(self._now)  # not what was told ahead
                    self._backend.follow(None)
                except Exception as error:
                    self._error = EmulationError(f"the schedule ended, and its links cannot stay as they are: {error}")
                    self._error.__cause__ = error
            self._highest = None

    def _elapsed(self) -> float:
        return (time.monotonic_ns() - self._zero_ns) / 1e9

    def _play(self) -> None:
        events = self.schedule.events_until()
        following = next(events, None)
        ahead = AHEAD_SECONDS if self._highest is not None else 0.0
        while following is not None and self._wait_until(following.at_seconds - ahead * isinstance(following, Change)):
            due = [following]
            following = next(events, None)
            while isinstance(due[-1], Change) and isinstance(following, Change) and self._together(due[0], following):
                due.append(following)
                following = next(events, None)
            try:
                self._apply(due)
            except Exception as error:  # any: it is raised again where the player is used
                told = f"the schedule stopped at {due[0].at_seconds:g} s ({due[0].what}): {error}"
                self._error = EmulationError(told)
                self._error.__cause__ = error
                return
        if following is None and self._told:
            self._wait_until(self._told[-1][0])

    def _together(self, first: Change | Fault, second: Change) -> bool:
        """Whether two changes that follow each other are one."""
        if self._highest is not None:
            return second.at_seconds == first.at_seconds
        return second.at_seconds <= self._elapsed()

    def _wait_until(self, seconds: float) -> bool:
        """Whether the time has come; False: it was told to stop. What was told ahead is recorded at its time."""
        while (left := seconds - self._elapsed()) > 0:
            until = min([seconds, *(at for at, *_ in list(self._told)[:1])]) - self._elapsed()
            if self._stop.wait(min(max(until, 0.0), left, LONGEST_WAIT_SECONDS)):
                return False
            self._record_told()
        self._record_told()
        return not self._stop.is_set()

    def _record_told(self) -> None:
        while self._told and self._told[0][0] <= self._elapsed():
            at, event, self._now = self._told.popleft()
            self._record(event, at)

    def _apply(self, due: Sequence[Change | Fault]) -> None:
        """One fault, or changes that are due together."""
        network = self._backend.network
        for event in due:
            if isinstance(event, Change):
                network = event.apply(network)
            else:
                self._break(event)
        if self._highest is None:
            if isinstance(due[0], Change):
                self._backend.change(network)
            applied = round(self._elapsed(), 6)
            self._backend.check_readback()
            for event in due:
                self._record(event, applied)
            return
        if isinstance(due[0], Change):
            self._backend.change(network, self._zero_ns + round(due[0].at_seconds * 1e9))
        if isinstance(due[0], Fault) or self._elapsed() - self._read_at >= READBACK_SECONDS:
            self._backend.check_readback()
            self._read_at = self._elapsed()
        known = max(due[0].at_seconds, self._elapsed())  # where this thread was late
        self._told += [(known, event, network) for event in due]

    def _record(self, event: Change | Fault, applied_seconds: float) -> None:
        record = event.describe()
        record["applied_seconds"] = round(applied_seconds, 6)
        self._events.append(record)
        if self._on_event is not None:
            self._on_event(record)

    def _break(self, fault: Fault) -> None:
        nodes = self._backend.network.nodes
        if fault.kind == "partition":
            self._backend.partition([[nodes[index] for index in group] for group in fault.groups])
        elif fault.kind == "heal":
            self._backend.heal()
        else:
            act = self._actions()[fault.kind]
            for index in fault.nodes:
                act(nodes[index])

    def _actions(self) -> dict[str, Callable[[Node], None]]:
        """Of faults that concern single nodes."""
        backend, programs = self._backend, self._programs
        actions: dict[str, Callable[[Node], None]] = {
            "down": backend.link_down,
            "up": backend.link_up,
            "freeze": backend.freeze,
            "thaw": backend.thaw,
            "kill": backend.kill,
        }
        if programs is not None:
            actions["restart"] = programs.restart
        return actions
