"""What an arm is against the others, at equal steps; and whether a comparison shows anything at all."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from testbed.config import Data
from testbed.config.data import TASKS
from testbed.config.plugged import plugged_task
from testbed.records import ArmRecord

__all__ = ["ABOVE_GUESSING", "CONTROL_ABOVE", "guessed", "recovered", "relate", "void_reason", "with_nats"]

Arm = TypeVar("Arm", bound=ArmRecord)

CONTROL_ABOVE = 0.08
"""How far the control's validation loss must lie above the exact exchange's, as a fraction."""
ABOVE_GUESSING = 0.075
"""How far the remote recall of a trainer without exchange may lie above what guessing reaches."""


def guessed(data: Data) -> float:
    """The share of answers that whoever does not see what they depend on has right, at most: 1/V by chance; where
    values are balanced, what is left is known of the last, and the mean of 1/V, 1/(V − 1), … 1 is right."""
    if data.task not in TASKS:
        return plugged_task(data.task, data.options).guessed
    if data.task == "snapshot":
        return sum(1 / left for left in range(1, data.values + 1)) / data.values
    return 1 / data.values


def relate(arms: Sequence[Arm], guess: float = 0.125) -> list[Arm]:
    """Copies of `arms` with their relations filled in; None where a partner or a number is missing.

    Ratios are plain (1 = the same), differences of losses relative (+0.12 = 12 % worse) and in nats. `guess`: the
    remote recall of whoever guesses. Losses are compared only between arms that trained for equally many steps. In a
    void comparison nothing is recovered: what exchange is worth lies within chance there, and a share of it is any
    number.
    """
    by_name, void = {arm.arm: arm for arm in arms}, void_reason(arms, guess) is not None
    central, exact, control = (by_name.get(name) for name in ("centralised", "decentralised", "control"))
    return [
        replace(
            arm,
            step_time_vs_centralised=_ratio(arm, central, "step_seconds_mean"),
            kv_bytes_vs_decentralised=_ratio(arm, exact, "kv_payload_bytes_per_step"),
            wire_bytes_vs_decentralised=_ratio(arm, exact, "wire_bytes_per_step"),
            val_loss_vs_centralised=_worse(arm, central),
            val_loss_vs_decentralised=_worse(arm, exact),
            val_loss_above_centralised=_above(arm, central),
            val_loss_above_decentralised=_above(arm, exact),
            recovered_fraction=None if void else _recovered(arm, exact, control),  # a share of nothing
        )
        for arm in arms
    ]


def with_nats(arms: Sequence[Arm]) -> list[Arm]:
    """Copies of `arms` with how far each one's loss lies above the others', for runs of before that do not say."""
    by_name = {arm.arm: arm for arm in arms}
    central, exact = by_name.get("centralised"), by_name.get("decentralised")
    return [
        replace(arm, val_loss_above_centralised=_above(arm, central), val_loss_above_decentralised=_above(arm, exact))
        for arm in arms
    ]


def recovered(mine: float | None, exact: float | None, control: float | None) -> float | None:
    """The share of what exchange is worth that an arm has: (control − arm) / (control − exact), of losses on remote
    tokens; None where one is not known or exchange is worth nothing."""
    mine, exact, control = _known(mine), _known(exact), _known(control)
    if mine is None or exact is None or control is None or control == exact:
        return None
    return (control - mine) / (control - exact)


def void_reason(arms: Sequence[ArmRecord], guess: float = 0.125) -> str | None:
    """Why this comparison says nothing about exchange, or None: it does, or there is too little to tell."""
    by_name = {arm.arm: arm for arm in arms}
    control, exact = by_name.get("control"), by_name.get("decentralised")
    above = None if control is None else _worse(control, exact)
    recall = None if control is None else _known(control.recall_accuracy_remote)
    found = []
    if above is not None and above < CONTROL_ABOVE:
        found.append(
            f"without exchange the validation loss is {above:+.1%} against the exact exchange "
            f"(at least {CONTROL_ABOVE:+.0%} is needed)"
        )
    most = guess + ABOVE_GUESSING
    if recall is not None and recall > most:
        found.append(f"without exchange {recall:.0%} of the remote recall is right (at most {most:.0%} may be)")
    if not found:
        return None
    return f"On this task the comparison shows nothing about exchange: {' and '.join(found)}."


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _ratio(arm: ArmRecord, other: ArmRecord | None, key: str) -> float | None:
    mine, theirs = _known(getattr(arm, key)), None if other is None else _known(getattr(other, key))
    return None if mine is None or not theirs else mine / theirs


def _as_long(arm: ArmRecord, other: ArmRecord) -> bool:
    """Whether both learned from as many steps."""
    one, two = (each.steps if each.learned_steps is None else each.learned_steps for each in (arm, other))
    return one == two


def _worse(arm: ArmRecord, other: ArmRecord | None) -> float | None:
    ratio = _ratio(arm, other, "final_val_loss")
    return None if ratio is None or other is None or not _as_long(arm, other) else ratio - 1


def _above(arm: ArmRecord, other: ArmRecord | None) -> float | None:
    mine, theirs = _known(arm.final_val_loss), None if other is None else _known(other.final_val_loss)
    if other is None or mine is None or theirs is None or not _as_long(arm, other):
        return None
    return mine - theirs


def _recovered(arm: ArmRecord, exact: ArmRecord | None, control: ArmRecord | None) -> float | None:
    if exact is None or control is None or not (_as_long(arm, exact) and _as_long(arm, control)):
        return None
    return recovered(arm.val_loss_remote, exact.val_loss_remote, control.val_loss_remote)
