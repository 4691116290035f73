"""A trainer that was learned off the network, and where it was."""

from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from testbed.config.tree import STRICT
from testbed.records.arm import Validation
from testbed.records.environment import Place

__all__ = ["LearnedCell", "LearnedResult"]


@dataclass(frozen=True, kw_only=True)
class LearnedResult:
    """What all steps of one trainer did, whatever the link."""

    __pydantic_config__ = STRICT

    corpus_sha256: str
    warm_sha256: str
    losses: tuple[float, ...]
    """Of each step over all ranks, nats per token, six digits."""
    rank_losses: list[list[list[float]]]
    """[rank][step] = [loss sum, tokens], of as many steps as are ever timed on a link."""
    validations: tuple[Validation, ...]
    validation_exact: Validation
    """The last one, with plain attention."""
    drift: tuple[tuple[int, float], ...]
    """(step, how far apart replicas were before they were averaged)."""
    clipped: float | None = None
    """The share of steps whose gradients were clipped, a rank's mean."""
    bytes_per_token_layer: dict[str, float]
    """To one peer, by direction."""
    payload_bytes_per_step: dict[str, int]
    """What a rank sends in a step, by channel."""
    sync_bytes_each: int
    codec: dict[str, JsonValue]
    """What the codec says of itself at the end."""
    parameters: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class LearnedCell(LearnedResult):
    """One arm of one preset with one seed: `cells/<hash>.json` of `testbed learn`, `learned/<hash>.json` of a sweep."""

    __pydantic_config__ = STRICT

    cell: str
    config: dict[str, Any]
    """What its hash is of."""
    asked: dict[str, JsonValue]
    content: dict[str, JsonValue]
    """What decides it besides what was asked: code, data, versions."""
    environment: Place
