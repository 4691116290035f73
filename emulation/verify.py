"""Measure every link and compare it with what was asked for.

Rates. What is compared is the TCP payload that arrives, against the closed form of `goodput_bps`. Acknowledgements of
the flows in the other direction pass the same shaper: their number is read from the kernel (TCP_INFO) and their bytes
are taken from the rate before it is turned into the expected goodput. `arrived_bps` counts segments as they come,
`goodput_bps` bytes in order: they differ for a moment when a segment is lost and what follows waits for it. Losses,
jitter and reordering are off while rates are measured: shapers know nothing of them, and TCP would measure itself.

    alone     nic: n_i -> n_i+1 for all nodes at once, so that each shaper carries one flow; where nodes differ, one
              node after the other sends to, and receives from, as many others as its rate takes
              pair: n_i -> n_i+r for all nodes at once, in N-1 rounds r
    together  every node sends to every other

Each flow's first moments are measured too: a bucket deeper than it should be shows there. Round trips and losses are
measured with datagrams, on idle links.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from emulation.errors import LinkError
from emulation.isolation import check_isolation
from emulation.network import (
    ETHERNET_HEADER_BYTES,
    FRAMING_BYTES,
    TCP_IP_HEADER_BYTES,
    Link,
    Network,
    Node,
    ack_bytes,
    goodput_bps,
)
from emulation.nodes.base import Backend
from emulation.nodes.netns import NetnsBackend
from emulation.probes import Flow, Probers
from emulation.shaping.sizes import PEAK, segments_of, sizes
from emulation.units import format_rate

__all__ = ["Tolerance", "capacity", "check", "measure", "proof", "verify"]

SCHEMA = 2
ATTEMPTS = 3
PINGS = 100
SLOW_BPS = 50_000_000
"""Below it a window holds too few packets in a second, and queues take longer to settle."""
FEWEST_PACKETS, LONGEST_WINDOW_SECONDS = 300, 20.0
"""What a window must hold, so that one more or less is no news."""
DRAIN_SECONDS = 0.02
"""Between rounds, beside the time that the shapers' queues take to run empty."""
LOSS_DATAGRAMS, MOST_DATAGRAMS = 2000, 8000
LOSS_DEVIATIONS = 3.3
"""Of a binomial count: 1 in 1000 measurements of a true link is outside."""
MANY_STREAMS = (8, 32)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a link may be from what was asked for."""

    rate: float = 0.02
    """Share of the expected goodput, either way."""
    contended: float = 0.05
    """The same for the sum of all links, downwards, when all nodes send to all over access links."""
    round_trip_us: float = 1000.0
    round_trip: float = 0.02
    """A median round trip: so many microseconds and this share of it."""


def measure(
    backend: Backend, network: Network, seconds: float | None = None, *, streams: Sequence[int] = (1,)
) -> dict[str, Any]:
    """Measure every link of `network`, which `backend` has built; `seconds` sets the steady window of a round.

    With `streams` (1, 8, 32) the rounds of "alone" are repeated with so many connections per flow.
    """
    began = time.monotonic()
    first, warm, window = _windows(network, seconds)
    nodes = network.nodes
    links: list[dict[str, Any]] = []
    with Probers(backend) as probers:
        round_trips, losses = _datagrams(probers, network)
        lossless = network.change(_lossless)
        if lossless != network:
            backend.change(lossless)
        for number in streams:
            for flows, groups in _rounds(network) if len(nodes) > 1 else []:
                results = probers.flows(flows, first, warm, window, _drain(network), streams=number)
                links += _lines(network, "alone" if number == 1 else f"{number} streams", groups, results)
        if len(nodes) > 1:
            results = probers.flows(list(network.pairs), first, warm, window, _drain(network))
            links += _lines(network, "together", _shapers(network, list(network.pairs)), results)
        if lossless != network:
            backend.change(network)
    rate = network.slowest_bps
    return {
        "schema": SCHEMA,
        "rate_bps": rate,
        "accounting": network.accounting,
        "framing": network.framing,
        "nodes": len(nodes),
        "expected_goodput_bps": round(goodput_bps(rate, network.mtu, network.framing)) if rate else None,
        "warm_seconds": warm,
        "window_seconds": window,
        "links": links,
        "round_trips": round_trips,
        "losses": losses,
        "aggregate_bps": round(sum(each["goodput_bps"] for each in links if _counts_once(network, each))),
        "wall_seconds": round(time.monotonic() - began, 3),
    }


def _counts_once(network: Network, line: dict[str, Any]) -> bool:
    return line["phase"] == "together" and (network.accounting == "pair" or line["direction"] == "up")


def _lossless(link: Link) -> Link:
    return replace(link, loss=0.0, loss_burst=None, jitter_us=0, reorder=0.0)


def _windows(network: Network, seconds: float | None) -> tuple[float, float, float]:
    """First moments, warm-up and steady window in seconds."""
    rate, round_trip = network.slowest_bps, network.longest_round_trip_us / 1e6
    slow = rate is not None and rate < SLOW_BPS
    if network.accounting == "nic":
        warm, window = (0.6, 2.0) if slow else (0.35, 1.0)
    else:
        warm, window = (0.4, 0.9) if slow else (0.35, 0.7)
    if rate is not None:
        frame_seconds = (network.mtu + ETHERNET_HEADER_BYTES) * 8 / rate
        warm = max(warm, 30 * frame_seconds)
        window = min(LONGEST_WINDOW_SECONDS, max(window, FEWEST_PACKETS * frame_seconds))
    # slow start from ten segments grows by half to twice per round trip until it fills the link
    fastest = max((link.rate_bps or 10**9 for link in network.links), default=10**9)
    doublings = math.log2(max(2.0, fastest * max(round_trip, 1e-4) / 8 / (10 * network.mtu)))
    warm += (1.7 * doublings + 4) * round_trip
    window += 4 * round_trip
    return min(warm, 1.0) * 0.9, warm, window if seconds is None else seconds


def _drain(network: Network) -> float:
    """Seconds after which queues and paths are empty again."""
    longest = 0.0
    for node in network.nodes:
        link = network.link_of(node)
        for rate in (link.rate_bps, link.down_bps):
            if rate is not None:
                depth = sizes(network, rate, link, 2, network.longest_round_trip_us)
                longest = max(longest, depth.queue_bytes * 8 / rate)
    return DRAIN_SECONDS + longest + network.longest_round_trip_us / 1e6


Group = tuple[Node, Node | None, str, list[Flow], list[Flow]]
"""A shaper: node, peer (of a pair), direction, the flows whose data it carries, those whose acknowledgements."""


def _rounds(network: Network) -> list[tuple[list[Flow], list[Group]]]:
    """The rounds of "alone", and which shapers each loads to the full."""
    nodes = network.nodes
    if network.accounting == "pair":
        rounds = [[(node, nodes[(node.index + r) % len(nodes)]) for node in nodes] for r in range(1, len(nodes))]
        return [(flows, _shapers(network, flows)) for flows in rounds]
    if network.uniform and network.link.rate_down_bps in (None, network.link.rate_bps):
        ring = [(node, nodes[(node.index + 1) % len(nodes)]) for node in nodes]
        return [(ring, _shapers(network, ring))]
    rounds = []
    for node in nodes:
        out = [(node, peer) for peer in _enough(network, node, up=True)]
        into = [(peer, node) for peer in _enough(network, node, up=False)]
        rounds += [(out, [(node, None, "up", out, [])]), (into, [(node, None, "down", into, [])])]
    return rounds


def _enough(network: Network, node: Node, *, up: bool) -> list[Node]:
    """The fewest peers that take what `node` can send, or send what it can take."""
    own = network.link_of(node)
    wanted = own.rate_bps if up else own.down_bps

    def share(peer: Node) -> float:
        link = network.link_of(peer)
        rate = link.down_bps if up else link.rate_bps
        return math.inf if rate is None else rate

    chosen: list[Node] = []
    for peer in sorted(network.peers(node), key=share, reverse=True):
        chosen.append(peer)
        if wanted is None or sum(map(share, chosen)) >= wanted:
            break
    return chosen


def _shapers(network: Network, flows: list[Flow]) -> list[Group]:
    """Every shaper that `flows` pass."""
    if network.accounting == "pair":
        return [(a, b, "pair", [(a, b)], [(b, a)]) for a, b in flows]
    groups: list[Group] = []
    for node in network.nodes:
        out = [flow for flow in flows if flow[0] == node]
        into = [flow for flow in flows if flow[1] == node]
        groups += [(node, None, "up", out, into), (node, None, "down", into, out)]
    return groups


def _lines(
    network: Network, phase: str, groups: list[Group], flows: dict[Flow, list[dict[str, float]]]
) -> list[dict[str, Any]]:
    """Goodput through each shaper that the flows loaded, beside what it should be."""
    return [_line(network, phase, group, flows) for group in groups]


def _line(network: Network, phase: str, group: Group, flows: dict[Flow, list[dict[str, float]]]) -> dict[str, Any]:
    node, peer, direction, carried, acknowledged = group
    extra = FRAMING_BYTES[network.framing]
    goodput = arrived = wire = acks = early = 0.0
    for flow in carried:
        beginning, steady = flows[flow]
        payload = network.mtu_of(*flow) - TCP_IP_HEADER_BYTES
        goodput += steady["payload_bytes"] * 8 / steady["seconds"]
        arrived += steady["segments"] * payload * 8 / steady["seconds"]
        wire += steady["segments"] * (payload + TCP_IP_HEADER_BYTES + extra) * 8 / steady["seconds"]
        early += beginning["segments"] * (payload + TCP_IP_HEADER_BYTES + extra) * 8
    for flow in acknowledged:
        if flow in flows:
            acks += flows[flow][1]["acks"] * ack_bytes(network.framing) * 8 / flows[flow][1]["seconds"]
    rate, binding = _rate(network, node, peer, direction, phase, carried)
    share = arrived / wire if wire else goodput_bps(1.0, network.mtu, network.framing)
    expected = max(rate - acks, rate / 2) * share if rate else None
    seconds = flows[carried[0]][0]["seconds"] if carried else 1.0
    link = network.path(node, peer) if peer else network.link_of(node)
    depth = sizes(network, rate, link, segments_of(network, node.index), 0) if rate else None
    room = (depth.peak_bytes * 8 + rate * PEAK * seconds) if rate and depth else None
    return {
        "phase": phase,
        "direction": direction,
        "node": node.name,
        "peer": peer.name if peer else None,
        "goodput_bps": round(goodput),
        "arrived_bps": round(arrived),
        "expected_bps": round(expected) if expected else None,
        "ratio": round(arrived / expected, 5) if expected else None,
        "binding": binding,
        "ack_share": round(acks / rate, 5) if rate else None,
        "first_seconds": round(seconds, 3),
        "first_ratio": round(early / room, 5) if room else None,
        "resent_segments": round(sum({flow[0]: flows[flow][1]["resent"] for flow in carried}.values())),
    }


def _rate(
    network: Network, node: Node, peer: Node | None, direction: str, phase: str, carried: list[Flow]
) -> tuple[int | None, bool]:
    """A shaper's rate, and whether the flows through it are bound by it alone."""
    if peer is not None:
        return network.path(node, peer).rate_bps, True
    link = network.link_of(node)
    own = link.rate_bps if direction == "up" else link.down_bps
    others = [network.link_of(flow[1] if direction == "up" else flow[0]) for flow in carried]
    rates = [other.down_bps if direction == "up" else other.rate_bps for other in others]
    reach = math.inf if None in rates else float(sum(rate for rate in rates if rate is not None))
    if own is None:
        return None, False
    if phase == "together":
        even = network.uniform and link.rate_down_bps in (None, link.rate_bps)
        return own, even
    return int(min(own, reach)), True


def _datagrams(probers: Probers, network: Network) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Round trips of every pair, and losses of every ordered pair that is asked to lose."""
    nodes = network.nodes
    rounds = [[(node, nodes[(node.index + r) % len(nodes)]) for node in nodes] for r in range(1, len(nodes))]
    slowest = network.slowest_bps or 10**9
    interval = max(0.002, 20 * (64 + 42) * 8 / slowest)
    pings = PINGS if interval <= 0.01 else 20
    round_trips, losses = [], []
    for pairs in rounds:
        found = probers.pings(pairs, pings, interval)
        for line, (source, target) in zip(found, pairs, strict=True):
            there, back = network.path(source, target), network.path(target, source)
            line |= {
                "expected_us": network.round_trip_us(source, target),
                "jitter_us": there.jitter_us + back.jitter_us,
            }
            line["loss_asked"] = round(1 - (1 - there.loss) * (1 - back.loss), 6)
        round_trips += found
        losses += _losses(probers, network, pairs, interval)
    return round_trips, losses


def _losses(probers: Probers, network: Network, pairs: list[Flow], interval: float) -> list[dict[str, Any]]:
    lossy = [(a, b) for a, b in pairs if network.path(a, b).loss]
    if not lossy:
        return []
    rarest = min(network.path(a, b).loss for a, b in lossy)
    count = round(min(MOST_DATAGRAMS, max(LOSS_DATAGRAMS, 20 / rarest)))
    if interval > 0.002:
        count = min(count, round(LONGEST_WINDOW_SECONDS / interval))
    lines = []
    for (source, target), (sent, came) in probers.losses(lossy, count, min(interval, 0.0005)).items():
        link = network.path(source, target)
        low, high = _binomial(sent, link)
        lines.append(
            {
                "from": source.name,
                "to": target.name,
                "sent": sent,
                "lost": sent - came,
                "loss": round((sent - came) / max(1, sent), 6),
                "asked": link.loss,
                "lowest": round(low, 6),
                "highest": round(high, 6),
            }
        )
    return lines


def _binomial(sent: int, link: Link) -> tuple[float, float]:
    """Between which shares the loss of a true link stays; bursts of mean length B spread the count 2 B - 1 times more.

    Variance of a two-state Markov chain's mean: p (1 - p) / n * (1 + r) / (1 - r) with r = 1 - enter - leave.
    """
    p = link.loss
    spread = 1.0
    if link.loss_burst is not None:
        leave = 1 / link.loss_burst
        memory = max(0.0, 1 - leave - p * leave / (1 - p))
        spread = (1 + memory) / (1 - memory)
    margin = LOSS_DEVIATIONS * math.sqrt(p * (1 - p) * spread / max(1, sent)) + 1 / max(1, sent)
    return max(0.0, p - margin), min(1.0, p + margin)


def check(measured: dict[str, Any], tolerance: Tolerance | None = None) -> list[str]:
    """What is out of tolerance, in plain sentences; an empty list is a proven network.

    Alone, and with accounting "pair" always, each link has to be within the tolerance. When all nodes send
    to all over access links, each flow passes two queues that it shares with different others, and
    congestion control decides who gets what: there no link may carry more than it should, and all of them
    together at most 5 % less (where nodes are alike; where they differ, nothing is said of less).
    """
    allowed = tolerance or Tolerance()
    contended = [each for each in measured["links"] if each["phase"] == "together" and not each["peer"]]
    single = [each for each in measured["links"] if each not in contended]
    problems = [_problem(each) for each in single if each["ratio"] and abs(each["ratio"] - 1) > allowed.rate]
    problems += [_problem(each) for each in contended if each["ratio"] and each["ratio"] - 1 > allowed.rate]
    problems += [f"no byte arrived: {_where(each)}" for each in measured["links"] if each["ratio"] == 0]
    problems += [
        f"{_where(each)}: in the first {each['first_seconds']:.2f} s {each['first_ratio']:.2f} times what the rate "
        "allows came through, a bucket is too deep"
        for each in measured["links"]
        if each["first_ratio"] and each["first_ratio"] > 1 + allowed.rate
    ]
    ratios = [each["ratio"] for each in contended if each["ratio"] is not None and each["binding"]]
    if ratios and statistics.mean(ratios) < 1 - max(allowed.rate, allowed.contended):
        problems.append(f"all links together carried {(statistics.mean(ratios) - 1) * 100:+.1f} % of what they should")
    for ping in measured["round_trips"]:
        problems += _ping_problems(ping, allowed)
    for loss in measured["losses"]:
        if not loss["lowest"] <= loss["loss"] <= loss["highest"]:
            problems.append(
                f"{loss['from']} -> {loss['to']}: {loss['loss']:.3%} of {loss['sent']} datagrams got lost, asked for "
                f"{loss['asked']:.3%} ({loss['lowest']:.3%} to {loss['highest']:.3%} would be chance)"
            )
    return problems


def _ping_problems(ping: dict[str, Any], allowed: Tolerance) -> list[str]:
    where = f"{ping['from']} -> {ping['to']}"
    if ping["lost"] and not ping["loss_asked"]:
        return [f"{where}: {ping['lost']} of {ping['sent']} echo packets got lost on idle links"]
    if ping["median_us"] is None:
        return [f"{where}: no echo came back"]
    slack = allowed.round_trip_us + allowed.round_trip * ping["expected_us"] + ping["jitter_us"]
    if abs(ping["median_us"] - ping["expected_us"]) <= slack:
        return []
    return [
        f"{where}: round trip of {ping['median_us'] / 1000:.2f} ms in the median, asked for "
        f"{ping['expected_us'] / 1000:.2f} (allowed difference {slack / 1000:.2f})"
    ]


def _where(link: dict[str, Any]) -> str:
    ends = f"{link['node']} -> {link['peer']}" if link["peer"] else f"{link['node']} {link['direction']}"
    return f"{ends}, {link['phase']}"


def _problem(link: dict[str, Any]) -> str:
    return (
        f"{_where(link)}: {link['arrived_bps'] / 1e6:.3f} Mbit/s of goodput, expected "
        f"{link['expected_bps'] / 1e6:.3f} ({(link['ratio'] - 1) * 100:+.1f} %)"
    )


def verify(
    backend: Backend, network: Network, tolerance: Tolerance | None = None, *, streams: Sequence[int] = (1,)
) -> dict[str, Any]:
    """Measure and check, up to three times until an attempt is within tolerance; LinkError if none is.

    A machine that is busy for a moment makes a true link look slow; nothing makes a wrong one look right.
    """
    allowed = tolerance or Tolerance()
    attempts, problems = [], []
    for _ in range(ATTEMPTS):
        if isinstance(backend, NetnsBackend):
            backend.check_readback()
            check_isolation(backend)
        measured = measure(backend, network, streams=streams)
        backend.check_alive()
        problems = check(measured, allowed)
        attempts.append({"measured": measured, "problems": problems})
        if not problems:
            return measured | {"ok": True, "tolerance": asdict(allowed), "attempts": attempts}
    rate = network.slowest_bps
    raise LinkError(
        f"links of {format_rate(rate) if rate else 'any rate'} ({network.accounting}) were asked for; "
        f"measured {ATTEMPTS} times, found {'; '.join(problems[:3])}"
        f"{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. "
        "Try again when the machine is idle, with fewer nodes, or with a lower rate."
    )


def proof(network: Network, measured: dict[str, Any]) -> str:
    """What a verification found, in words."""
    rated = [link for link in measured["links"] if link["ratio"] and link["binding"]]
    worst = max((abs(link["ratio"] - 1) for link in rated), default=0.0)
    whose = "pair" if network.accounting == "pair" else "node"
    rate = network.slowest_bps
    asked = f"{format_rate(rate)} per {whose}" if rate else "no rate"
    if not network.uniform:
        asked = f"links of {asked} and more"
    text = f"{asked} asked, goodput within {worst:.2%} of the expected on all {len(rated)} measurements"
    trips = [ping for ping in measured["round_trips"] if ping["median_us"] is not None]
    if network.impaired and trips:
        off = max(abs(ping["median_us"] - ping["expected_us"]) for ping in trips) / 1000
        longest = max(ping["expected_us"] for ping in trips) / 1000
        text += f"; round trips of up to {longest:g} ms within {off:.2f} ms"
    if measured["losses"]:
        lost = sum(loss["lost"] for loss in measured["losses"]) / sum(loss["sent"] for loss in measured["losses"])
        text += f"; {lost:.2%} of datagrams lost"
    return text


def capacity(backend: Backend) -> dict[str, Any]:
    """What this machine carries all to all, over links that are now unshaped; about half a second."""
    nodes = backend.network.nodes
    with Probers(backend) as probers:
        flows = probers.flows([(a, b) for a in nodes for b in nodes if a != b], 0.05, 0.1, 0.3, DRAIN_SECONDS)
    rates = [each[-1]["payload_bytes"] * 8 / each[-1]["seconds"] for each in flows.values()]
    pairs = max(1, len(rates))
    return {
        "schema": SCHEMA,
        "aggregate_bps": round(sum(rates)),
        "per_pair_bps": round(sum(rates) / pairs),
        "slowest_pair_bps": round(min(rates, default=0)),
        "per_node_bps": round(sum(rates) / len(nodes)),
        "nodes": len(nodes),
    }
