"""Round trips, jitter and losses of every path, measured with datagrams on idle links; and what chance does to them."""

import math
from dataclasses import replace

from emulation.measure.measurement import PathLoss, RoundTrip
from emulation.measure.probe_client import Flow, Probers
from emulation.spec.network import Link, Network

__all__ = ["LONGEST_WINDOW_SECONDS", "LOSS_DEVIATIONS", "binomial", "datagrams", "needed"]

LONGEST_WINDOW_SECONDS = 20.0
PINGS = 100
FEW_PINGS = 20
DATAGRAM_BYTES, DATAGRAM_SECONDS = 64 + 42, 0.0002
LOSS_DATAGRAMS = 2000
LOSS_DEVIATIONS = 3.3
"""Of a binomial count: 1 in 1000 measurements of a true link is outside."""


def datagrams(probers: Probers, network: Network) -> tuple[tuple[RoundTrip, ...], tuple[PathLoss, ...]]:
    """Round trips of every pair and, if any path is to lose, the losses of every path."""
    nodes = network.nodes
    rounds = [[(node, nodes[(node.index + r) % len(nodes)]) for node in nodes] for r in range(1, len(nodes))]
    packet_seconds = DATAGRAM_BYTES * 8 / (network.slowest_bps or 10**9)
    interval = max(0.002, 20 * packet_seconds)
    pings = PINGS if interval <= 0.01 else FEW_PINGS
    round_trips: list[RoundTrip] = []
    losses: list[PathLoss] = []
    for pairs in rounds:
        found = probers.pings(pairs, pings, interval)
        for line, (source, target) in zip(found, pairs, strict=True):
            there, back = network.path(source, target), network.path(target, source)
            asked = replace(
                line,
                expected_us=network.round_trip_us(source, target),
                spread_us=round(math.hypot(_spread(there), _spread(back)), 1),
                skew_us=round(_skew(there) + _skew(back), 1),
                reorder=max(there.reorder, back.reorder),
                loss_asked=round(1 - (1 - there.loss) * (1 - back.loss), 6),
            )
            round_trips.append(asked)
        if any(link.loss for link in network.links):
            losses += _losses(probers, network, pairs, max(DATAGRAM_SECONDS, 3 * packet_seconds))
    return tuple(round_trips), tuple(losses)


def _spread(link: Link) -> float:
    """The standard deviation of a jitter: that of U^(-1/3) - 1.5, Pareto's law of shape 3, is 0.87."""
    return link.jitter_us * {"normal": 1.0, "uniform": 1 / math.sqrt(3), "pareto": math.sqrt(0.75)}[link.distribution]


def _skew(link: Link) -> float:
    """How far below its mean the median of a jitter is: 1.5 - 2^(1/3) for Pareto's law."""
    return link.jitter_us * (1.5 - 2 ** (1 / 3)) if link.distribution == "pareto" else 0.0


def _losses(probers: Probers, network: Network, pairs: list[Flow], interval: float) -> list[PathLoss]:
    wanted = [needed(network.path(a, b)) for a, b in pairs]
    count = round(min(LONGEST_WINDOW_SECONDS / interval, max(LOSS_DATAGRAMS, *wanted)))
    lines = []
    for (source, target), found in probers.losses(pairs, count, interval).items():
        link = network.path(source, target)
        low, high = binomial(found["sent"], link)
        lost = found["sent"] - found["came"]
        lines.append(
            PathLoss(
                source=source.name,
                target=target.name,
                sent=found["sent"],
                lost=lost,
                loss=round(lost / max(1, found["sent"]), 6),
                asked=link.loss,
                lowest=round(low, 6),
                highest=round(high, 6),
                run=round(lost / found["gaps"], 3) if lost > 0 and found["gaps"] else None,
                run_asked=round(_run(link), 3) if link.loss else None,
                runs=found["gaps"],
            )
        )
    return lines


def _memory(link: Link) -> float:
    """How much one packet's fate tells of the next: 1 - enter - leave of the two states; 0 for losses on their own."""
    if link.loss_burst is None:
        return 0.0
    leave = 1 / link.loss_burst
    return max(0.0, 1 - leave - link.loss * leave / (1 - link.loss))


def _run(link: Link) -> float:
    """Mean number of packets lost in a row."""
    return 1 / (1 - link.loss) if link.loss_burst is None else link.loss_burst


def needed(link: Link) -> float:
    """Datagrams after which chance alone hides no more than 60 % of a loss."""
    if not link.loss:
        return 0.0
    memory = _memory(link)
    return (LOSS_DEVIATIONS / 0.6) ** 2 * (1 - link.loss) / link.loss * (1 + memory) / (1 - memory)


def binomial(sent: int, link: Link) -> tuple[float, float]:
    """Between which shares the loss of a true link stays.

    Variance of the mean of a two-state Markov chain: p (1 - p) / n * (1 + r) / (1 - r), r its memory.
    """
    p, memory = link.loss, _memory(link)
    if not p:
        return 0.0, 0.0
    margin = LOSS_DEVIATIONS * math.sqrt(p * (1 - p) * (1 + memory) / (1 - memory) / max(1, sent)) + 1 / max(1, sent)
    return p - margin, min(1.0, p + margin)
