"""What waits in a relay, and until when: delays with their chances, and rates that may change at any time.

Times are nanoseconds of CLOCK_MONOTONIC, numbers the kernel's of a packet in its queue.
"""

import heapq
import random
from collections import deque
from typing import TypedDict

__all__ = ["Line", "QueueFacts", "Rate", "RateFacts", "Served"]

_BIAS_NS = 60_000
"""Taken from every delay: what a packet spends on its way into the queue and out again, measured on an idle machine. A
delay below it is none."""


class QueueFacts(TypedDict):
    """What packets of one queue meet, as the relay is told."""

    queue: int
    delay_us: int
    jitter_us: int
    distribution: str
    loss: float
    enter: float
    """Probability of a packet to enter the state in which all are lost (Gilbert 1960, Elliott 1963)."""
    leave: float
    reorder: float
    up: str | None
    """The name of the rate that they pass before the delay …"""
    down: str | None
    """… and behind it."""


class RateFacts(TypedDict):
    """A rate that the relay holds, as it is told."""

    name: str
    bps: int
    queue_bytes: int
    mtu: int
    framing_bytes: int


class Orders(TypedDict, total=False):
    """A line of JSON that the relay is told; the first one has its place, the others rates and queues."""

    netns: str | None
    statistics: str | None
    """The file in which it counts."""
    seed: int
    read: bool
    """Whether it should only say what it holds."""
    rates: list[RateFacts]
    lines: list[QueueFacts]
    at_ns: int
    """From when on, in CLOCK_MONOTONIC; at once unless given."""


class Held(TypedDict, total=False):
    """The relay's answer."""

    priority: str
    holds: list[QueueFacts | RateFacts]


class Line:
    """One queue: the packets of all paths that are alike."""

    def __init__(self, queue: int, seed: str) -> None:
        self.queue = queue
        self.waiting: deque[tuple[int, int]] = deque()
        """(due, number), in order: released together."""
        self.jittered: list[tuple[int, int]] = []
        """Packets as a heap, released one by one."""
        self.random = random.Random(seed)
        self.delay_ns = self.jitter_ns = self.last_due = 0
        self.distribution, self.loss, self.reorder = "normal", 0.0, 0.0
        self.enter, self.leave, self.bad = 0.0, 1.0, False
        self.up: Rate | None = None
        """What serves its packets before they are delayed …"""
        self.down: Rate | None = None
        """… and after it."""
        self.last_left = 0
        """When the last packet left the delay towards `down`."""

    @property
    def rated(self) -> bool:
        """Whether a rate is the relay's."""
        return self.up is not None or self.down is not None

    def set(self, settings: QueueFacts) -> None:
        """From now on; what waits keeps its time."""
        self.delay_ns = max(0, settings["delay_us"] * 1000 - _BIAS_NS)
        self.jitter_ns = settings["jitter_us"] * 1000
        self.distribution, self.reorder = settings["distribution"], settings["reorder"]
        self.loss, self.enter, self.leave = settings["loss"], settings["enter"], settings["leave"]

    def append(self, due: int, number: int) -> None:
        """Behind all that wait; while jittered ones do, or some before a rate, a verdict for "all up to this one" would
        let them go too."""
        self.last_due = due
        if self.jittered or self.rated:
            heapq.heappush(self.jittered, (due, number))
        else:
            self.waiting.append((due, number))

    def lost(self) -> bool:
        """Whether the next packet is; `enter` above 0: the two states of Gilbert and Elliott."""
        if not self.enter:
            return self.random.random() < self.loss
        self.bad = self.random.random() >= self.leave if self.bad else self.random.random() < self.enter
        return self.bad

    def wait_ns(self) -> int:
        """The next packet's delay."""
        if self.distribution == "uniform":
            extra = self.random.uniform(-1.0, 1.0)
        elif self.distribution == "pareto":  # shape 3, mean 0, as netem's table
            extra = (1.0 - self.random.random()) ** (-1 / 3) - 1.5
        else:
            extra = self.random.gauss(0.0, 1.0)
        return max(0, self.delay_ns + int(extra * self.jitter_ns))


Served = tuple[Line, int, int]
"""A packet: its line, number and bytes."""


class Rate:
    """A link's rate: packets leave in order of arrival, each when the rate has had time for its bytes.

    The rate may change while a packet is being served: its bytes that are left go on at the new one. So nothing is ever
    owed, and nothing saved up; how late the relay is does not matter either, for it reckons in the times of arrival.
    """

    def __init__(self) -> None:
        self.queue: deque[Served] = deque()
        self.held_bytes = self.limit_bytes = 0
        self.bytes_per_ns = 0.0
        self.left_bytes = 0.0
        """Bytes of the first packet that are not served yet."""
        self.until_ns = 0
        """Up to when packets have been served."""

    def set(self, bps: float, queue_bytes: int) -> None:
        """From now on. Serve first."""
        self.bytes_per_ns, self.limit_bytes = bps / 8e9, queue_bytes

    def put(self, at_ns: int, packet: Served) -> bool:
        """One more, that arrived then; False: the queue was full. Serve until then first."""
        size = packet[2]
        if self.queue and self.held_bytes + size > self.limit_bytes:
            return False
        if not self.queue:
            self.left_bytes, self.until_ns = size, max(at_ns, self.until_ns)
        self.queue.append(packet)
        self.held_bytes += size
        return True

    def serve(self, until_ns: int) -> list[tuple[int, Served]]:
        """What has left up to then, and when."""
        gone = []
        while self.queue and self.until_ns < until_ns:
            done_ns = self.until_ns + int(self.left_bytes / self.bytes_per_ns)
            if done_ns > until_ns:
                self.left_bytes -= (until_ns - self.until_ns) * self.bytes_per_ns
                self.until_ns = until_ns
                break
            packet = self.queue.popleft()
            self.held_bytes -= packet[2]
            self.until_ns = done_ns
            gone.append((done_ns, packet))
            self.left_bytes = self.queue[0][2] if self.queue else 0.0
        return gone

    def soonest(self) -> int:
        """When the next leaves, if nothing changes."""
        return self.until_ns + int(self.left_bytes / self.bytes_per_ns) + 1 if self.queue else 1 << 62
