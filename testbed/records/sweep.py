"""A sweep: what was asked of it, each timed cell, and what is concluded."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import JsonValue

from testbed.config.tree import STRICT
from testbed.records.arm import ArmSummary, LinkKind
from testbed.records.comparison import Conditions

__all__ = [
    "CellEntry",
    "CellSummary",
    "CheckEntry",
    "CheckRow",
    "CommandEntry",
    "CommandSummary",
    "ExcludedPoint",
    "Machine",
    "PointNetwork",
    "SweepConfig",
    "SweepRecord",
    "described",
]


@dataclass(frozen=True, kw_only=True)
class CellSummary(ArmSummary):
    """`cells/<hash>/summary.json`: an arm as it was timed at one point."""

    __pydantic_config__ = STRICT

    cell: str
    point: dict[str, JsonValue]
    asked: dict[str, JsonValue]
    content: dict[str, JsonValue]
    """What decides its time besides what was asked: code, data, versions, image."""
    network: Conditions


@dataclass(frozen=True, kw_only=True)
class CommandSummary:
    """`cells/<hash>/summary.json` of a user's own command."""

    __pydantic_config__ = STRICT

    cell: str
    point: dict[str, JsonValue]
    seed: int
    command: tuple[str, ...]
    wall_seconds: float
    exit_status: int
    """The worst of all nodes'."""
    sent_bytes: dict[str, int]
    """By node."""
    received_bytes: dict[str, int]
    pairs: tuple[dict[str, JsonValue], ...]
    """`from`, `to` and `bytes`."""
    said: dict[str, JsonValue]
    """What it printed as JSON objects on lines of their own."""


@dataclass(frozen=True, kw_only=True)
class PointNetwork:
    """The links of a point in numbers."""

    __pydantic_config__ = STRICT

    bandwidth_bps: float
    one_way_delay_seconds: float
    packet_loss: float


@dataclass(frozen=True, kw_only=True)
class CellEntry:
    """An arm at a point, and which cells stand for it."""

    __pydantic_config__ = STRICT

    cell: str
    arm: str
    point: dict[str, JsonValue]
    """What was varied."""
    older: str = ""
    """In what the cells that stand for it differ from those that were asked for; empty: in nothing."""
    network: PointNetwork
    learned: dict[int, str]
    """Its trainer, by seed."""
    nodes_learned: int | None = None


@dataclass(frozen=True, kw_only=True)
class CommandEntry:
    """A user's own command at a point."""

    __pydantic_config__ = STRICT

    cell: str
    seed: int
    point: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class CheckEntry:
    """A cell that is also trained step by step on its link."""

    __pydantic_config__ = STRICT

    cell: str
    of: str
    """The cell whose composed time it is held against."""
    arm: str
    point: str
    seed: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class CheckRow(CheckEntry):
    """What became of it."""

    __pydantic_config__ = STRICT

    state: Literal["done", "invalid", "failed", "missing"] = "missing"
    why: str = ""
    link: LinkKind | None = None
    nodes: int | None = None
    trained_seconds: float | None = None
    """To the end of its last step."""
    composed_seconds: float | None = None
    difference: float | None = None
    """(composed − trained) / trained."""
    val_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExcludedPoint:
    """A point that is not run."""

    __pydantic_config__ = STRICT

    point: dict[str, JsonValue]
    reason: str


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """`config.json` of a sweep."""

    __pydantic_config__ = STRICT

    kind: Literal["sweep", "command"]
    title: str
    question: str
    exact: str
    control: str
    sweep: dict[str, JsonValue]
    """The whole file."""
    varied: tuple[str, ...]
    excluded: tuple[ExcludedPoint, ...]
    cells: tuple[CellEntry, ...] = ()
    commands: tuple[CommandEntry, ...] = ()
    checks: tuple[CheckEntry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """On what cells were learned or timed."""

    __pydantic_config__ = STRICT

    host: str | None
    kernel: str | None
    cpu: str | None
    cpu_features: tuple[str, ...] | None
    cells: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """`sweep.json`."""

    __pydantic_config__ = STRICT
    SCHEMA_VERSION: ClassVar[int] = 3

    kind: Literal["sweep", "command"]
    name: str
    title: str
    question: str
    exact: str
    control: str
    varied: tuple[str, ...]
    cells: int
    states: dict[str, int]
    """Cells by state."""
    excluded: tuple[ExcludedPoint, ...]
    machines: tuple[Machine, ...]
    notes: tuple[str, ...]
    failed: dict[str, str]
    """Reasons by cell."""
    checks: tuple[CheckRow, ...] = field(default=())


def described(point: dict[str, JsonValue]) -> str:
    """A point in words, for messages."""
    return ", ".join(f"{key} {value}" for key, value in point.items()) or "the only point"
