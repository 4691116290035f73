"""What is measured of links, as records: their goodput, their round trips, their losses."""

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Attempt", "Capacity", "Goodput", "Measurement", "PathLoss", "Proof", "RoundTrip", "Window"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """What arrived of a flow in a stretch of time."""

    payload_bytes: float
    segments: float
    acks: float
    seconds: float
    resent: float
    """Segments, of all flows from the same source."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Through one shaper, under one load."""

    phase: str
    """alone, together, or so many streams."""
    direction: str
    """up, down, or pair."""
    node: str
    peer: str | None
    """Of a pair; None: the node's access link."""
    goodput_bps: int
    """Of bytes in order."""
    arrived_bps: int
    """Of segments as they came."""
    expected_bps: int | None
    """None: no rate was asked for."""
    ratio: float | None
    """Arrived / expected."""
    binding: bool
    """Whether this shaper alone held the flows back."""
    ack_share: float | None
    """Of the rate, taken by the acknowledgements of flows in the other direction."""
    first_seconds: float
    first_ratio: float | None
    """What came in those first moments / what the bucket and the rate allow."""
    resent_segments: int

    @property
    def off(self) -> float:
        """Arrived / expected − 1; 0 where no rate was asked for."""
        return 0.0 if self.ratio is None else self.ratio - 1

    @property
    def contended(self) -> bool:
        """Whether flows that share two queues with different others passed it: of these the mean is judged."""
        return self.phase == "together" and not self.peer


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """Of datagrams between two nodes on idle links."""

    source: str
    target: str
    sent: int
    lost: int
    median_us: float | None
    """None: no echo came back."""
    p99_us: float | None
    iqr_us: float | None
    """Between the quartiles."""
    expected_us: int = 0
    spread_us: float = 0.0
    """Standard deviation of the jitter that was asked for, both ways."""
    skew_us: float = 0.0
    """How far the median of that jitter lies below its mean."""
    reorder: float = 0.0
    loss_asked: float = 0.0
    """Share, both ways together."""


@dataclass(frozen=True, kw_only=True)
class PathLoss:
    """Of datagrams from one node to another."""

    source: str
    target: str
    sent: int
    lost: int
    loss: float
    """Share."""
    asked: float
    lowest: float
    highest: float
    """Between which chance leaves the share of a true link."""
    run: float | None
    """Mean number lost in a row."""
    run_asked: float | None
    runs: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All links of a network."""

    SCHEMA: ClassVar[int] = 3

    rate_bps: int | None
    """The slowest asked."""
    accounting: str
    framing: str
    nodes: int
    expected_goodput_bps: int | None
    warm_seconds: float
    window_seconds: float
    links: tuple[Goodput, ...]
    round_trips: tuple[RoundTrip, ...]
    losses: tuple[PathLoss, ...]
    aggregate_bps: int
    """While every node sends to every other."""
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One measurement, and what of it was out of tolerance."""

    measured: Measurement
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Proof(Measurement):
    """The last attempt, and whether the links are what was asked."""

    ok: bool
    problems: tuple[str, ...]
    tolerance: dict[str, float]
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What this machine carries all to all over unshaped links."""

    SCHEMA: ClassVar[int] = 3

    aggregate_bps: int
    per_pair_bps: int
    slowest_pair_bps: int
    per_node_bps: int
    nodes: int
    round_trip_us: float
