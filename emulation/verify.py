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

__all__ = ["Tolerance", "capacity", "check", "measure", "proof", "prove", "verify"]

SCHEMA = 2
ATTEMPTS = 4
PINGS = 100
SLOW_BPS = 50_000_000
"""Below it a window holds too few packets in a second, and queues take longer to settle."""
FEWEST_PACKETS, LONGEST_WINDOW_SECONDS = 300, 20.0
"""What a window must hold, so that one more or less is no news."""
DRAIN_SECONDS = 0.02
"""Between rounds, beside the time that the shapers' queues take to run empty."""
FEW_PINGS = 20
DATAGRAM_BYTES, DATAGRAM_SECONDS = 64 + 42, 0.0002
LOSS_DATAGRAMS = 2000
FEWEST_RUNS = 20
"""Of losses, before their mean length is judged."""
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
        round_trips, losses = _datagrams(probers, network)
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
    room = None
    if rate and depth:
        rooms = (depth.burst_bytes * 8 + rate * seconds, depth.peak_bytes * 8 + rate * PEAK * seconds)
        room = min(rooms)
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
    return int(min(own, reach)), own <= reach


def _datagrams(probers: Probers, network: Network) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Round trips of every pair and, if any path is to lose, the losses of every path."""
    nodes = network.nodes
    rounds = [[(node, nodes[(node.index + r) % len(nodes)]) for node in nodes] for r in range(1, len(nodes))]
    packet_seconds = DATAGRAM_BYTES * 8 / (network.slowest_bps or 10**9)
    interval = max(0.002, 20 * packet_seconds)
    pings = PINGS if interval <= 0.01 else FEW_PINGS
    round_trips, losses = [], []
    for pairs in rounds:
        found = probers.pings(pairs, pings, interval)
        for line, (source, target) in zip(found, pairs, strict=True):
            there, back = network.path(source, target), network.path(target, source)
            line["expected_us"] = network.round_trip_us(source, target)
            line["spread_us"] = round(math.hypot(_spread(there), _spread(back)), 1)
            line["skew_us"] = round(_skew(there) + _skew(back), 1)
            line["reorder"] = max(there.reorder, back.reorder)
            line["loss_asked"] = round(1 - (1 - there.loss) * (1 - back.loss), 6)
        round_trips += found
        if any(link.loss for link in network.links):
            losses += _losses(probers, network, pairs, max(DATAGRAM_SECONDS, 3 * packet_seconds))
    return round_trips, losses


def _spread(link: Link) -> float:
    """The standard deviation of a jitter: that of U^(-1/3) - 1.5, Pareto's law of shape 3, is 0.87."""
    return link.jitter_us * {"normal": 1.0, "uniform": 1 / math.sqrt(3), "pareto": math.sqrt(0.75)}[link.distribution]


def _skew(link: Link) -> float:
    """How far below its mean the median of a jitter is: 1.5 - 2^(1/3) for Pareto's law."""
    return link.jitter_us * (1.5 - 2 ** (1 / 3)) if link.distribution == "pareto" else 0.0


def _losses(probers: Probers, network: Network, pairs: list[Flow], interval: float) -> list[dict[str, Any]]:
    wanted = [_needed(network.path(a, b)) for a, b in pairs]
    count = round(min(LONGEST_WINDOW_SECONDS / interval, max(LOSS_DATAGRAMS, *wanted)))
    lines = []
    for (source, target), found in probers.losses(pairs, count, interval).items():
        link = network.path(source, target)
        low, high = _binomial(found["sent"], link)
        lost = found["sent"] - found["came"]
        lines.append(
            {
                "from": source.name,
                "to": target.name,
                "sent": found["sent"],
                "lost": lost,
                "loss": round(lost / max(1, found["sent"]), 6),
                "asked": link.loss,
                "lowest": round(low, 6),
                "highest": round(high, 6),
                "run": round(lost / found["gaps"], 3) if lost > 0 and found["gaps"] else None,
                "run_asked": round(_run(link), 3) if link.loss else None,
                "runs": found["gaps"],
            }
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


def _needed(link: Link) -> float:
    """Datagrams after which chance alone hides no more than 60 % of a loss."""
    if not link.loss:
        return 0.0
    memory = _memory(link)
    return (LOSS_DEVIATIONS / 0.6) ** 2 * (1 - link.loss) / link.loss * (1 + memory) / (1 - memory)


def _binomial(sent: int, link: Link) -> tuple[float, float]:
    """Between which shares the loss of a true link stays.

    Variance of the mean of a two-state Markov chain: p (1 - p) / n * (1 + r) / (1 - r), r its memory.
    """
    p, memory = link.loss, _memory(link)
    if not p:
        return 0.0, 0.0
    margin = LOSS_DEVIATIONS * math.sqrt(p * (1 - p) * (1 + memory) / (1 - memory) / max(1, sent)) + 1 / max(1, sent)
    return p - margin, min(1.0, p + margin)


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
        problems += _loss_problems(loss)
    return problems


def _loss_problems(loss: dict[str, Any]) -> list[str]:
    where = f"{loss['from']} -> {loss['to']}"
    if not loss["lowest"] <= loss["loss"] <= loss["highest"]:
        return [
            f"{where}: {loss['loss']:.3%} of {loss['sent']} datagrams got lost, asked for {loss['asked']:.3%} "
            f"({max(0.0, loss['lowest']):.3%} to {loss['highest']:.3%} would be chance)"
        ]
    if loss["asked"] and loss["lowest"] <= 0:
        return [
            f"{where}: {loss['sent']} datagrams, all that so slow a link takes in {LONGEST_WINDOW_SECONDS:.0f} s, "
            f"cannot tell a loss of {loss['asked']:.3%} from none; ask for a higher rate or a higher loss"
        ]
    if loss["run"] is None or loss["runs"] < FEWEST_RUNS:
        return []
    asked = loss["run_asked"]
    slack = LOSS_DEVIATIONS * math.sqrt(asked * max(asked - 1, 0.05) / loss["runs"]) + 0.02 * asked
    if abs(loss["run"] - asked) <= slack:
        return []
    return [f"{where}: losses came {loss['run']:.2f} in a row, asked for {asked:.2f} (chance: {slack:.2f} either way)"]


def _ping_problems(ping: dict[str, Any], allowed: Tolerance) -> list[str]:
    where, share = f"{ping['from']} -> {ping['to']}", ping["loss_asked"]
    most = share * ping["sent"] + (LOSS_DEVIATIONS * math.sqrt(share * ping["sent"]) + 1 if share else 0)
    if ping["lost"] > most and not ping["median_us"]:
        return [f"{where}: no echo came back"]
    if ping["lost"] > most and not share:
        return [f"{where}: {ping['lost']} of {ping['sent']} echo packets got lost on idle links"]
    if ping["median_us"] is None:
        return [f"{where}: no echo came back"]
    spread = ping["spread_us"]
    chance = 4 * 1.25 * spread / math.sqrt(ping["sent"])  # of a median
    slack = allowed.round_trip_us + allowed.round_trip * ping["expected_us"] + chance
    expected = ping["expected_us"] - ping["skew_us"]
    if abs(ping["median_us"] - expected) > slack + ping["skew_us"] / 2:
        return [
            f"{where}: round trip of {ping['median_us'] / 1000:.2f} ms in the median, asked for "
            f"{expected / 1000:.2f} (allowed difference {slack / 1000:.2f})"
        ]
    width = 1.35 * spread  # between the quartiles of a normal law
    if spread and not ping["reorder"] and not 0.5 * width - 500 <= ping["iqr_us"] <= 1.7 * width + 1000:
        return [
            f"{where}: half of all round trips lie within {ping['iqr_us'] / 1000:.2f} ms, a jitter as asked for would "
            f"give about {width / 1000:.2f}"
        ]
    return []


def _where(link: dict[str, Any]) -> str:
    ends = f"{link['node']} -> {link['peer']}" if link["peer"] else f"{link['node']} {link['direction']}"
    return f"{ends}, {link['phase']}"


def _problem(link: dict[str, Any]) -> str:
    return (
        f"{_where(link)}: {link['arrived_bps'] / 1e6:.3f} Mbit/s of goodput, expected "
        f"{link['expected_bps'] / 1e6:.3f} ({(link['ratio'] - 1) * 100:+.1f} %)"
    )


def prove(
    backend: Backend, network: Network, tolerance: Tolerance | None = None, *, streams: Sequence[int] = (1,)
) -> dict[str, Any]:
    """Measure and check until an attempt is within tolerance, up to four times: the last one, with `ok`, its `problems`
    and all `attempts`.

    A machine that is busy for a moment makes a true link look slow. What makes one look too fast, or lossy in another
    way than asked, is rarer: after such an attempt two have to be within tolerance, one after the other. Raises
    LinkError where the kernel has something else than asked.
    """
    allowed = tolerance or Tolerance()
    attempts: list[dict[str, Any]] = []
    clean, needed = 0, 1
    while clean < needed and len(attempts) < ATTEMPTS:
        if isinstance(backend, NetnsBackend):
            backend.check_readback()
            check_isolation(backend)
        measured = measure(backend, network, streams=streams)
        backend.check_readback()
        backend.check_alive()
        problems = check(measured, allowed)
        attempts.append({"measured": measured, "problems": problems})
        clean = 0 if problems else clean + 1
        needed = 2 if _more_than_slow(measured, problems, allowed) else needed
    last = attempts[-1]
    found = last["problems"] or ([] if clean == needed else attempts[-2]["problems"])
    return last["measured"] | {
        "ok": clean == needed,
        "problems": found,
        "tolerance": asdict(allowed),
        "attempts": attempts,
    }


def verify(
    backend: Backend, network: Network, tolerance: Tolerance | None = None, *, streams: Sequence[int] = (1,)
) -> dict[str, Any]:
    """What `prove` found; LinkError if that is not what was asked."""
    found = prove(backend, network, tolerance, streams=streams)
    if found["ok"]:
        return found
    rate, problems = network.slowest_bps, found["problems"]
    raise LinkError(
        f"links of {format_rate(rate) if rate else 'any rate'} ({network.accounting}) were asked for; "
        f"measured {ATTEMPTS} times, found {'; '.join(problems[:3])}"
        f"{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. "
        "Try again when the machine is idle, with fewer nodes, or with a lower rate."
    )


def _more_than_slow(measured: dict[str, Any], problems: list[str], allowed: Tolerance) -> bool:
    """Whether something is wrong that a busy machine does not explain."""
    fast = any(
        (link["ratio"] or 0.0) > 1 + allowed.rate or (link["first_ratio"] or 0.0) > 1 + allowed.rate
        for link in measured["links"]
    )
    return bool(problems) and (fast or any(_loss_problems(loss) for loss in measured["losses"]))


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
