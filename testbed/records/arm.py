"""One arm of a comparison: what it is, what was measured of it, and its losses and times step by step."""

from dataclasses import dataclass
from typing import Literal

from testbed.config.tree import STRICT

__all__ = [
    "ArmRecord",
    "ArmSummary",
    "LearnedSeries",
    "Ledger",
    "LinkKind",
    "StepRecord",
    "TimedSeries",
    "Validation",
]

LinkKind = Literal["shaped", "unshaped", "modelled"]
"""Held to the asked rate by the kernel; as fast as the machine; waited for, not carried."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Mean losses in nats per token over held-out sequences, and shares of facts recalled; None: no such token."""

    __pydantic_config__ = STRICT

    step: int
    """Steps trained so far."""
    val_loss: float | None
    val_loss_text: float | None = None
    val_loss_remote: float | None = None
    """On tokens whose evidence lies on another node."""
    val_loss_local: float | None = None
    val_loss_by_remote_context: tuple[float | None, ...] = (None, None, None, None)
    """By how much of a token's document other nodes hold (`testbed.trainer.validation.remote_context`)."""
    recall_accuracy_remote: float | None = None
    recall_accuracy_local: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """From payload to interface, bytes summed over the timed steps of all nodes."""

    __pydantic_config__ = STRICT

    payload_bytes: int
    socket_sent_bytes: int
    socket_resent_bytes: int
    predicted_wire_bytes: int
    wire_tx_bytes: int
    interface_tx_bytes: int
    queue_drops: int
    """Packets."""
    largest_difference: float
    """Of one node's step, between predicted and counted bytes, as a fraction."""
    node_steps: int


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One timed step over all ranks. Times are means over ranks, scaled to all of the target's layers."""

    __pydantic_config__ = STRICT

    step: int
    step_seconds: float
    """Without synchronisation."""
    compute_seconds: float
    exchange_seconds: float
    compute_cpu_seconds: float
    sync_seconds: float
    loss: float
    payload_bytes: dict[str, float]
    """By channel, a node's mean."""
    wire_tx_bytes: float | None
    """A node's mean; None where nothing counts."""
    valid: bool
    why: tuple[str, ...] = ()
    """What makes it invalid."""
    suspect: tuple[str, ...] = ()
    """What may have prolonged it."""
    resent_bytes: float = 0.0
    queue_drops: float = 0.0
    time_seconds: float | None = None
    """Since the first step, where steps are trained one after the other."""
    unsure_seconds: float | None = None
    """Half of the 95 % interval of `step_seconds` that its own exchanges give, of which a step has several alike."""


@dataclass(frozen=True, kw_only=True)
class LearnedSeries:
    """What a trainer learned off its link: the loss of every step, and its validations."""

    __pydantic_config__ = STRICT

    loss: tuple[float, ...] = ()
    validations: tuple[Validation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TimedSeries:
    """What was timed on its link."""

    __pydantic_config__ = STRICT

    steps: tuple[StepRecord, ...] = ()
    sync_seconds: tuple[float, ...] = ()
    """Seconds of each synchronisation."""


@dataclass(frozen=True, kw_only=True)
class ArmRecord:
    """An arm in `comparison.json`. Bytes are a node's mean of what it sends."""

    __pydantic_config__ = STRICT

    arm: str
    exchange: str
    codec: str | None
    """None where no K and V travel."""
    sync: str
    link: LinkKind
    rate_bps: float | None
    """Asked; None on a link that is not shaped."""
    modelled_goodput_bps: float | None = None
    goodput_measured_bps: float | None = None
    rate_measured_bps: float | None
    """What the measured goodput amounts to, as the shaper counts."""
    events: int = 0
    """That a schedule brought to its links."""
    machine_carries_bps: float | None = None
    """Between all nodes together, unshaped."""
    valid: bool
    why: tuple[str, ...]
    """What makes it invalid."""
    caution: str | None = None
    invalid_steps: int
    suspect_steps: int
    suspect_syncs: int
    suspect_why: str | None = None
    ledger: Ledger | None = None
    steps: int
    learned_steps: int | None
    final_val_loss: float | None
    val_loss_text: float | None
    val_loss_remote: float | None
    recall_accuracy_remote: float | None
    step_seconds_mean: float
    step_seconds_ci95: float | None
    """Half of the interval."""
    ci95_from: Literal["steps", "exchanges"] | None
    step_seconds_median: float
    steps_timed: int
    layers_timed: int | None
    layers_of_target: int | None
    compute_seconds_median: float
    compute_kind: Literal["modelled", "measured"]
    exchange_seconds_median: float
    sync_seconds_per_step: float | None
    sync_seconds_each: float | None
    sync_fraction_timed: float
    payload_by_channel: dict[str, float]
    payload_bytes_per_step: float
    kv_payload_bytes_per_step: float
    wire_bytes_per_step: float | None
    sync_payload_bytes_each: float | None
    sync_wire_bytes_each: float | None
    closed_form_step_seconds: float | None
    tokens_per_second: float
    wall_seconds: float
    other_accounting_step_seconds: float | None
    step_time_vs_centralised: float | None = None
    """From here on: against the other arms (`testbed.analysis.comparison.baselines`); None without a partner."""
    kv_bytes_vs_decentralised: float | None = None
    wire_bytes_vs_decentralised: float | None = None
    val_loss_vs_centralised: float | None = None
    val_loss_vs_decentralised: float | None = None
    val_loss_above_centralised: float | None = None
    val_loss_above_decentralised: float | None = None
    recovered_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class ArmSummary(ArmRecord):
    """An arm's own `summary.json`: its record, and its series."""

    __pydantic_config__ = STRICT

    learned: LearnedSeries
    timed: TimedSeries
