"""What an arm is against the others, at equal steps; and whether a comparison shows anything at all."""

import math
from typing import Any

from testbed.config import Data

__all__ = ["ABOVE_GUESSING", "CONTROL_ABOVE", "guessed", "relate", "void_reason", "with_nats"]

CONTROL_ABOVE = 0.08
"""How far the control's validation loss must lie above the exact exchange's, as a fraction."""
ABOVE_GUESSING = 0.075
"""How far the remote recall of a trainer without exchange may lie above what guessing reaches."""

Record = dict[str, Any]


def guessed(data: Data) -> float:
    """The share of answers that whoever does not see what they depend on has right, at most: 1/V by chance; where
    values are balanced, what is left is known of the last, and the mean of 1/V, 1/(V − 1), … 1 is right."""
    if data.task == "snapshot":
        return sum(1 / left for left in range(1, data.values + 1)) / data.values
    return 1 / data.values


def relate(arms: list[Record], guess: float = 0.125) -> list[Record]:
    """Copies of `arms` with their relations filled in; None where a partner or a number is missing.

    Ratios are plain (1 = the same), differences of losses relative (+0.12 = 12 % worse). `guess`: the remote recall
    of whoever guesses. Losses are compared only between arms that trained for equally many steps. In a void comparison
    nothing is recovered: what exchange is worth lies within chance there, and a share of it is any number.
    """
    by_name, void = {arm["arm"]: arm for arm in arms}, void_reason(arms, guess) is not None
    return [arm | _relations(arm, by_name, void) for arm in arms]


def _relations(arm: Record, by_name: dict[str, Record], void: bool) -> Record:
    central = by_name.get("centralised", {})
    exact = by_name.get("decentralised", {})
    control = by_name.get("control", {})
    return {
        "step_time_vs_centralised": _ratio(arm, central, "step_seconds_mean"),
        "kv_bytes_vs_decentralised": _ratio(arm, exact, "kv_payload_bytes_per_step"),
        "wire_bytes_vs_decentralised": _ratio(arm, exact, "wire_bytes_per_step"),
        "val_loss_vs_centralised": _worse(arm, central),
        "val_loss_vs_decentralised": _worse(arm, exact),
        "recovered_fraction": None if void else _recovered(arm, exact, control),  # a share of nothing
    }


def with_nats(arms: list[Record]) -> list[Record]:
    """Copies of `arms` with how far each one's loss lies above the others', in nats per token; at equal steps only."""
    by_name = {arm["arm"]: arm for arm in arms}
    return [
        arm
        | {f"val_loss_above_{name}": _above(arm, by_name.get(name, {})) for name in ("centralised", "decentralised")}
        for arm in arms
    ]


def void_reason(arms: list[Record], guess: float = 0.125) -> str | None:
    """Why this comparison says nothing about exchange, or None: it does, or there is too little to tell."""
    by_name = {arm["arm"]: arm for arm in arms}
    control, exact = by_name.get("control", {}), by_name.get("decentralised", {})
    above, recall = _worse(control, exact), _number(control, "recall_accuracy_remote")
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


def _number(arm: Record, key: str) -> float | None:
    value = arm.get(key)
    return None if value is None or not math.isfinite(value) else float(value)


def _ratio(arm: Record, other: Record, key: str) -> float | None:
    mine, theirs = _number(arm, key), _number(other, key)
    return None if mine is None or not theirs else mine / theirs


def _steps(arm: Record) -> float | None:
    learned = _number(arm, "learned_steps")
    return learned if learned is not None else _number(arm, "steps")


def _worse(arm: Record, other: Record) -> float | None:
    ratio = _ratio(arm, other, "final_val_loss")
    return None if ratio is None or _steps(arm) != _steps(other) else ratio - 1


def _above(arm: Record, other: Record) -> float | None:
    mine, theirs = _number(arm, "final_val_loss"), _number(other, "final_val_loss")
    return None if mine is None or theirs is None or _steps(arm) != _steps(other) else mine - theirs


def _recovered(arm: Record, exact: Record, control: Record) -> float | None:
    mine, best, worst = (_number(one, "val_loss_remote") for one in (arm, exact, control))
    if mine is None or best is None or worst is None or worst == best:
        return None
    return (worst - mine) / (worst - best) if _steps(arm) == _steps(exact) == _steps(control) else None
