"""Named spans of time, added up per step and written in the format that Perfetto and chrome://tracing open."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

__all__ = ["Trace", "current", "span"]

_MOST_EVENTS = 100_000


class SpanEvent(TypedDict):
    """A complete event of the Trace Event Format."""

    name: str
    ph: str
    pid: int
    tid: int
    ts: float
    """Its beginning, in microseconds."""
    dur: float
    """Microseconds."""


class Trace:
    """The spans of one rank. Nested spans are allowed; each name adds up on its own."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.recording = False
        """Whether single spans are kept for `write`, or only their sums."""
        self.seconds: dict[str, float] = {}
        """By name, since the last `take`."""
        self.events: list[SpanEvent] = []

    def add(self, name: str, start: float, end: float) -> None:
        """Record a span from `start` to `end` (time.perf_counter seconds)."""
        self.seconds[name] = self.seconds.get(name, 0.0) + end - start
        if self.recording and len(self.events) < _MOST_EVENTS:
            self.events.append(
                {
                    "name": name,
                    "ph": "X",
                    "pid": self.rank,
                    "tid": 0,
                    "ts": start * 1e6,
                    "dur": (end - start) * 1e6,
                }
            )

    def take(self) -> dict[str, float]:
        """Seconds by name since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken

    def write(self, path: Path) -> None:
        """The events so far, as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"schema_version": 1, "traceEvents": self.events}))


current = Trace(0)
"""The trace of this process."""


@contextmanager
def span(name: str) -> Iterator[None]:
    """Time the block under `name`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        current.add(name, start, time.perf_counter())
