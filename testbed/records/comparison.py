"""A whole comparison: under which conditions, and every arm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from testbed.config.tree import STRICT
from testbed.records.arm import ArmRecord

__all__ = ["ComparisonRecord", "Conditions", "LinkGoodput"]


@dataclass(frozen=True, kw_only=True)
class LinkGoodput:
    """One link's goodput in one phase, as measured; None where it was not measured under that load."""

    __pydantic_config__ = STRICT

    phase: Literal["preflight", "before", "after"]
    name: str
    direction: str
    expected_bps: float
    alone_bps: float | None = None
    alone_ratio: float | None = None
    together_bps: float | None = None
    """While all others are under full load too."""
    together_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all arms of a comparison share."""

    __pydantic_config__ = STRICT

    name: str
    nodes: int
    nodes_of_target: int | None
    accounting: Literal["pair", "nic"]
    framing: str
    bandwidth_bps: float
    delay_seconds: float
    """One way, of the longest path."""
    loss: float
    """The largest share of packets that a link is asked to lose."""
    network_links: tuple[Mapping[str, JsonValue], ...]
    """Fields of `emulation.spec.network.Link`."""
    preset: str
    target: str | None
    pace: str
    """The target whose compute time and message sizes are played, or "none"."""
    mode: Literal["composed", "live", "unpaced"]
    seed: int
    sync_every: int
    warm_start_seconds: float
    """Its share of every arm's time."""
    warm_start_kind: Literal["modelled", "measured"]
    warm_start_sha256: str
    corpus_sha256: str
    congestion_control: str
    backend: str
    schedule: list[dict[str, Any]] | None
    links: tuple[LinkGoodput, ...]

    @property
    def paced(self) -> bool:
        """Whether compute time is modelled: held to a target's, rather than this machine's own."""
        return self.pace != "none"


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(Conditions):
    """`comparison.json`."""

    __pydantic_config__ = STRICT

    void: str | None
    """Why it says nothing about exchange."""
    run_seconds: float
    arms: tuple[ArmRecord, ...]
