"""Whether a step, or a synchronisation, took as long as its bytes and its compute ask for.

Each is held against its siblings (the shorter half's longest: most are alike, and what disturbs one prolongs it),
against the closed form (compute + bytes / measured goodput) and against its wire (no link carries more than its rate):

    suspect   more than 5 % longer than its siblings, or than 12 % beyond the closed form (accounting nic: 15 %, for
              several senders that meet at one receiver take longer than their bytes)
    invalid   30 % beyond either; or shorter than its wire allows; or with bytes sent twice that nothing explains

Where links lose packets, or a schedule changes them, no closed form holds, and siblings differ by chance: neither makes
a step invalid there. Without a pace there is no closed form. A difference of less than 50 ms is a busy machine's grain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from testbed.collector.host_load import GRAIN_SECONDS

__all__ = ["Limits", "judged", "resends"]

_SIBLINGS, _FORM, _FORM_OF_NIC = 0.05, 0.12, 0.15
_INVALID = 0.30
_FASTER = 0.05
"""A link may be faster than asked by its tolerance."""
_SOME_RESENT, _RESENT, _RESENT_BYTES = 0.002, 0.01, 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the steps of an arm, or its synchronisations, are held against."""

    closed_form_seconds: float | None = None
    """None: there is none."""
    converging: bool = False
    """Whether several senders meet at one receiver's link (accounting nic)."""
    chance: bool = False
    """Whether the links lose packets or change, so that times differ without a fault."""


def judged(
    seconds: Sequence[float], least: Sequence[float], limits: Limits, *, sound: Sequence[bool]
) -> list[tuple[list[str], list[str]]]:
    """(what makes it invalid, what makes it suspect) of each of these durations.

    least: what its wire allows, each; `sound`: whether nothing else is wrong with it. What is shorter than its wire is
    nobody's sibling.
    """
    each_of = zip(seconds, least, sound, strict=True)
    good = [each for each, floor, fine in each_of if fine and not _too_short(each, floor)]
    usual = median_low(good) if len(good) > 1 else None
    return [_judge(each, floor, usual, limits) for each, floor in zip(seconds, least, strict=True)]


def resends(resent_bytes: float, wire_bytes: float | None) -> tuple[list[str], list[str]]:
    """Of a step in which nothing that we know of has lost or reordered a packet: from 1 % of the wire's bytes on
    something else does, below it may be a probe that came too early (RFC 8985, 7)."""
    share = resent_bytes / wire_bytes if wire_bytes else math.nan
    if resent_bytes <= _RESENT_BYTES or not share > _SOME_RESENT:
        return [], []
    said = f"{share:.1%} of the bytes were sent twice, though no queue dropped a packet"
    return ([f"{said}: something else on the links loses them"], []) if share > _RESENT else ([], [said])


def _too_short(seconds: float, least: float) -> bool:
    return seconds < (1 - _FASTER) * least


def _judge(seconds: float, least: float, usual: float | None, limits: Limits) -> tuple[list[str], list[str]]:
    why, suspect = [], []
    if _too_short(seconds, least):
        why.append(f"it took {seconds:.3f} s, and its links cannot carry its bytes in less than {least:.3f} s")
    form = _FORM_OF_NIC if limits.converging else _FORM
    for than, what, doubtful in (
        (usual, "what most of its siblings took", _SIBLINGS),
        (limits.closed_form_seconds, "the closed form", form),
    ):
        if than is None or seconds <= (1 + doubtful) * than or seconds - than < GRAIN_SECONDS:
            continue
        said = f"it took {seconds:.3f} s, {seconds / than - 1:.0%} more than {what}, {than:.3f} s"
        (why if seconds > (1 + _INVALID) * than and not limits.chance else suspect).append(said)
    return why, suspect
