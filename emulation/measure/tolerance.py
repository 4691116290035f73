"""What of a measurement is out of tolerance, in plain sentences."""

import math
import statistics
from dataclasses import dataclass

from emulation.measure.datagrams import LONGEST_WINDOW_SECONDS, LOSS_DEVIATIONS
from emulation.measure.measurement import Goodput, Measurement, PathLoss, RoundTrip

__all__ = ["Tolerance", "check", "loss_problems"]

FEWEST_RUNS = 20
"""Of losses, before their mean length is judged."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a link may be from what was asked for."""

    rate: float = 0.02
    """Share of the expected goodput, either way."""
    contended: float = 0.05
    """The same for the sum of all links, downwards, when all nodes send to all over access links."""
    round_trip_us: float = 1000.0
    round_trip: float = 0.02
    """Allowed error of a median round trip: round_trip_us + round_trip * expected."""


def check(measured: Measurement, tolerance: Tolerance | None = None) -> list[str]:
    """What is out of tolerance, in plain sentences; an empty list is a proven network.

    Alone, and with accounting "pair" always, each link has to be within the tolerance. When all nodes send
    to all over access links, each flow passes two queues that it shares with different others, and
    congestion control decides who gets what: there no link may carry more than it should, and all of them
    together at most 5 % less (where nodes are alike; where they differ, nothing is said of less).
    """
    allowed = tolerance or Tolerance()
    divided = [each for each in measured.links if each.contended]
    single = [each for each in measured.links if not each.contended]
    problems = [_problem(each) for each in single if each.ratio and abs(each.off) > allowed.rate]
    problems += [_problem(each) for each in divided if each.ratio and each.off > allowed.rate]
    problems += [f"no byte arrived: {_where(each)}" for each in measured.links if each.ratio == 0]
    problems += [
        f"{_where(each)}: in the first {each.first_seconds:.2f} s {each.first_ratio:.2f} times what the rate "
        "allows came through, a bucket is too deep"
        for each in measured.links
        if each.first_ratio and each.first_ratio > 1 + allowed.rate
    ]
    ratios = [each.ratio for each in divided if each.ratio is not None and each.binding]
    if ratios and statistics.mean(ratios) < 1 - max(allowed.rate, allowed.contended):
        problems.append(f"all links together carried {(statistics.mean(ratios) - 1) * 100:+.1f} % of what they should")
    for ping in measured.round_trips:
        problems += _ping_problems(ping, allowed)
    for loss in measured.losses:
        problems += loss_problems(loss)
    return problems


def loss_problems(loss: PathLoss) -> list[str]:
    where = f"{loss.source} -> {loss.target}"
    if not loss.lowest <= loss.loss <= loss.highest:
        return [
            f"{where}: {loss.loss:.3%} of {loss.sent} datagrams got lost, asked for {loss.asked:.3%} "
            f"({max(0.0, loss.lowest):.3%} to {loss.highest:.3%} would be chance)"
        ]
    if loss.asked and loss.lowest <= 0:
        return [
            f"{where}: {loss.sent} datagrams, all that so slow a link takes in {LONGEST_WINDOW_SECONDS:.0f} s, "
            f"cannot tell a loss of {loss.asked:.3%} from none; ask for a higher rate or a higher loss"
        ]
    asked = loss.run_asked
    if loss.run is None or asked is None or loss.runs < FEWEST_RUNS:
        return []
    slack = LOSS_DEVIATIONS * math.sqrt(asked * max(asked - 1, 0.05) / loss.runs) + 0.02 * asked
    if abs(loss.run - asked) <= slack:
        return []
    return [f"{where}: losses came {loss.run:.2f} in a row, asked for {asked:.2f} (chance: {slack:.2f} either way)"]


def _ping_problems(ping: RoundTrip, allowed: Tolerance) -> list[str]:
    where, share = f"{ping.source} -> {ping.target}", ping.loss_asked
    most = share * ping.sent + (LOSS_DEVIATIONS * math.sqrt(share * ping.sent) + 1 if share else 0)
    if ping.lost > most and not ping.median_us:
        return [f"{where}: no echo came back"]
    if ping.lost > most and not share:
        return [f"{where}: {ping.lost} of {ping.sent} echo packets got lost on idle links"]
    if ping.median_us is None:
        return [f"{where}: no echo came back"]
    spread = ping.spread_us
    chance = 4 * 1.25 * spread / math.sqrt(ping.sent)  # of a median
    slack = allowed.round_trip_us + allowed.round_trip * ping.expected_us + chance
    expected = ping.expected_us - ping.skew_us
    if abs(ping.median_us - expected) > slack + ping.skew_us / 2:
        return [
            f"{where}: round trip of {ping.median_us / 1000:.2f} ms in the median, asked for "
            f"{expected / 1000:.2f} (allowed difference {slack / 1000:.2f})"
        ]
    width, found = 1.35 * spread, ping.iqr_us or 0.0  # between the quartiles of a normal law
    if spread and not ping.reorder and not 0.5 * width - 500 <= found <= 1.7 * width + 1000:
        return [
            f"{where}: half of all round trips lie within {found / 1000:.2f} ms, a jitter as asked for would "
            f"give about {width / 1000:.2f}"
        ]
    return []


def _where(link: Goodput) -> str:
    ends = f"{link.node} -> {link.peer}" if link.peer else f"{link.node} {link.direction}"
    return f"{ends}, {link.phase}"


def _problem(link: Goodput) -> str:
    return (
        f"{_where(link)}: {link.arrived_bps / 1e6:.3f} Mbit/s of goodput, expected "
        f"{(link.expected_bps or 0) / 1e6:.3f} ({link.off * 100:+.1f} %)"
    )
