"""What of an arm is timed within its time budget, and about how long that takes."""

from emulation.spec.network import goodput_bps
from emulation.spec.units import parse_rate
from testbed.config import Arm
from testbed.intervals import known_within
from testbed.pace import Plan, plan_for
from testbed.settings.emulate import Settings

__all__ = [
    "LEAST_STEPS",
    "MOST_STEPS",
    "SYNC_EVENTS",
    "SYNC_EVENT_SECONDS",
    "is_timed_enough",
    "layers_to_time",
    "timed_seconds",
]

LEAST_STEPS, MOST_STEPS = 3, 12
_PRECISION = 0.02
SYNC_EVENTS, SYNC_EVENT_SECONDS = 2, 4.0
"""Averagings of the weights that are timed, and for how long each at most."""


def layers_to_time(settings: Settings, whole: Plan, step_seconds: float) -> int:
    """As many of the target's layers as let the fewest steps end within the budget; at least the model's own."""
    if whole.last_message_bytes is not None:
        return whole.layers  # its layers are not alike
    own = settings.preset.model.layers
    fitting = [k for k in range(own, whole.layers + 1, own) if whole.layers % k == 0]
    within = [k for k in fitting if LEAST_STEPS * step_seconds * k / whole.layers <= settings.seconds_per_arm]
    return max(within or fitting[:1])


def timed_seconds(settings: Settings, arm: Arm) -> float:
    """About how long an arm's timed steps (or its live ones) and averagings take, before anything is measured: closed
    form."""
    target = settings.target
    assert target is not None
    whole = plan_for(arm, settings.preset, target, timed_layers=target.layers)
    rate = parse_rate(target.fast_rate) if arm.link == "fast" else settings.rate_bps
    goodput = goodput_bps(rate, settings.network.mtu, settings.network.framing)
    if settings.accounting == "nic":
        goodput /= settings.nodes - 1
    step = whole.compute_seconds + whole.exchange_seconds(goodput)
    if whole.message_bytes:
        step += whole.layers * settings.network.longest_round_trip_us / 1e6
    if settings.live_steps is not None:
        syncs = settings.live_steps // settings.preset.sync_every if arm.sync == "average" else settings.live_steps
        return settings.live_steps * step + syncs * whole.sync_seconds(goodput)
    timed = step * layers_to_time(settings, whole, step) / whole.layers
    steps = max(1, min(LEAST_STEPS, int(settings.seconds_per_arm / timed)))
    return steps * timed + SYNC_EVENTS * min(SYNC_EVENT_SECONDS, whole.sync_seconds(goodput))


def is_timed_enough(settings: Settings, taken: int, valid: list[float], spent: float) -> bool:
    """Whether an arm's step time is known within ± 2 %, or out of budget; an invalid step is timed again, at most as
    many as were asked for. `taken` steps, `valid` seconds of those that count, `spent` seconds on all."""
    if settings.thrifty:
        return _is_one_of_many_timed_enough(settings, taken, valid, spent)
    possible = settings.preset.steps
    least, most = min(LEAST_STEPS, possible), min(MOST_STEPS, possible)
    if taken >= min(2 * MOST_STEPS, possible) or taken - len(valid) > max(least, len(valid)):
        return True
    if len(valid) < least:
        return False
    return len(valid) >= most or known_within(valid, _PRECISION) or spent > settings.seconds_per_arm


def _is_one_of_many_timed_enough(settings: Settings, taken: int, valid: list[float], spent: float) -> bool:
    """Known within ± 2 %, or one step more would not fit the budget: one is enough where it fills the time."""
    if taken == 0:
        return False
    invalid = taken - len(valid)
    if taken >= min(2 * MOST_STEPS, settings.preset.steps) or invalid > max(1, len(valid)):
        return True
    if not valid:
        return False
    full = spent * (1 + 1 / taken) > settings.seconds_per_arm * (2 if invalid else 1)
    return full or known_within(valid, _PRECISION)
