"""What one rank says of a step or a synchronisation, as counted on its node."""

from dataclasses import dataclass

from testbed.config.tree import STRICT

__all__ = ["RankStep", "RankSync", "Spent", "StepEntry", "SyncEntry"]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What moved between two readings of all counters of a node. None where nothing counts (host nodes)."""

    __pydantic_config__ = STRICT

    payload_bytes: dict[str, int]
    """Handed over, by channel."""
    acked: int
    """Payload bytes that the peers have acknowledged."""
    sent: int
    """Payload bytes, those sent again included."""
    resent: int
    segments: int
    predicted_wire_bytes: int
    wire_tx_bytes: int | None
    wire_rx_bytes: int | None
    interface_tx_bytes: int | None
    """With the headers that its super-packets have on the wire."""
    queue_drops: int | None
    """Packets, at the node's own interface."""
    relay_drops: int
    """Packets, of all nodes, in the delay line."""
    backlog_bytes: int | None
    fidelity: dict[str, float | None]
    """Shares of the time (`testbed.collector.fidelity`)."""
    suspect: tuple[str, ...]
    problems: tuple[str, ...]
    """What does not balance."""


@dataclass(frozen=True, kw_only=True)
class StepEntry(Spent):
    """A step in `ledger.json`."""

    __pydantic_config__ = STRICT

    step: int


@dataclass(frozen=True, kw_only=True)
class SyncEntry(Spent):
    """An averaging of the weights in `ledger.json`."""

    __pydantic_config__ = STRICT

    after_step: int
    fraction: float
    """Of its bytes that were sent."""
    event: str = "sync"


@dataclass(frozen=True, kw_only=True)
class RankStep:
    """A rank's answer to `step`."""

    __pydantic_config__ = STRICT

    step_seconds: float
    compute_seconds: float
    compute_cpu_seconds: float
    exchange_seconds: float
    """Waited for, and not hidden behind compute."""
    sync_seconds: float
    loss_sum: float
    """Nats, over `tokens`."""
    tokens: int
    exchanges: tuple[tuple[str, float], ...]
    """Direction and seconds of each exchange of a paced step."""
    spent: Spent
    """Its `problems` make the step invalid."""


@dataclass(frozen=True, kw_only=True)
class RankSync:
    """A rank's answer to `average`."""

    __pydantic_config__ = STRICT

    seconds: float
    spent: Spent
