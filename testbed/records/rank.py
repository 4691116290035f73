"""What one rank answers to an order, and what it counted on its node."""

from dataclasses import dataclass, field

from testbed.config.tree import STRICT

__all__ = [
    "Begun",
    "Finished",
    "FirstLosses",
    "Interpreter",
    "Prepared",
    "RankLearned",
    "RankStep",
    "RankSync",
    "Spent",
    "StepEntry",
    "SyncEntry",
    "ValidationSums",
    "WarmedUp",
]


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
    """Shares of the time (`testbed.collector.host_load`)."""
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
    """Share of its full bytes that was sent."""
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


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """What runs a program."""

    __pydantic_config__ = STRICT

    python: str
    packages: dict[str, str]
    """Versions by name."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A rank's answer to `prepare`."""

    __pydantic_config__ = STRICT

    corpus_sha256: str
    program_sha256: str
    """Digest of the sources that the rank runs."""
    interpreter: Interpreter


@dataclass(frozen=True, kw_only=True)
class WarmedUp:
    """To `warm_up`."""

    __pydantic_config__ = STRICT

    seconds: float
    sha256: str
    """Digest of the weights."""
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """To `begin`."""

    __pydantic_config__ = STRICT

    parameters: int


@dataclass(frozen=True, kw_only=True)
class FirstLosses:
    """To `first_losses`."""

    __pydantic_config__ = STRICT

    losses: list[list[float]]
    """[step] = [loss sum, tokens]."""


@dataclass(kw_only=True)
class ValidationSums:
    """Sums over validation tokens, in nats; they add up over ranks. A rank's answer to `validate`."""

    __pydantic_config__ = STRICT

    step: int = 0
    """Steps trained so far."""
    loss: float = 0.0
    tokens: int = 0
    text_loss: float = 0.0
    text_tokens: int = 0
    remote_loss: float = 0.0
    remote_tokens: int = 0
    """Tokens whose evidence lies on another node than they do."""
    remote_right: int = 0
    local_loss: float = 0.0
    local_tokens: int = 0
    """Tokens whose evidence lies on their own."""
    local_right: int = 0
    context_loss: list[float] = field(default_factory=lambda: [0.0] * 4)
    """By how much of a token's own document stands before it on other nodes (`testbed.trainer.validation`): nothing, up
    to a quarter of a chunk, up to a chunk, more. What an exchange is for in text without questions."""
    context_tokens: list[int] = field(default_factory=lambda: [0] * 4)


@dataclass(frozen=True, kw_only=True)
class RankLearned:
    """To `learn`."""

    __pydantic_config__ = STRICT

    losses: list[list[float]]
    """[step] = [loss sum, tokens]."""
    validations: tuple[ValidationSums, ...]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """To `finish`."""

    __pydantic_config__ = STRICT

    ledger: tuple[StepEntry | SyncEntry, ...]
