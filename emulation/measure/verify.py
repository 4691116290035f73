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
from dataclasses import asdict, replace

from emulation.errors import LinkError
from emulation.measure.datagrams import LONGEST_WINDOW_SECONDS, datagrams
from emulation.measure.measurement import Attempt, Capacity, Goodput, Measurement, Proof, Window
from emulation.measure.probe_client import Flow, Probers
from emulation.measure.tolerance import Tolerance, check, loss_problems
from emulation.nodes.base import Backend
from emulation.shaping.sizes import PEAK, segments_of, sizes
from emulation.spec.network import (
    ETHERNET_HEADER_BYTES,
    FRAMING_BYTES,
    TCP_IP_HEADER_BYTES,
    Link,
    Network,
    Node,
    ack_bytes,
    goodput_bps,
)
from emulation.spec.units import format_rate

__all__ = ["Tolerance", "capacity", "check", "measure", "proof", "prove", "verify"]

ATTEMPTS = 4
SLOW_BPS = 50_000_000
"""Below it a window holds too few packets in a second, and queues take longer to settle."""
FEWEST_PACKETS = 300
"""What a window must hold, so that one more or less is no news."""
DRAIN_SECONDS = 0.02
"""Between rounds, beside the time that the shapers' queues take to run empty."""
MANY_STREAMS = (8, 32)
DELAYED_PACKETS_PER_SECOND = 15_000
"""What the delay line passes beside TCP's acknowledgements, which pass it too, and is never late. Many connections make
small super-packets (`_at_once`)."""


def measure(
    backend: Backend, network: Network, seconds: float | None = None, *, streams: Sequence[int] = (1,)
) -> Measurement:
    """Measure every link of `network`, which `backend` has built; `seconds` sets the steady window of a round.

    With `streams` (1, 8, 32) the rounds of "alone" are repeated with so many connections per flow; where packets pass
    the delay line, with as many flows at once as it carries.
    """
    began = time.monotonic()
    first, warm, window = _windows(network, seconds)
    nodes = network.nodes
    links: list[Goodput] = []
    relayed = backend.delays_used == "delay line"
    with Probers(backend) as probers:
        lossless = network.change(_lossless)
        if lossless != network:
            backend.change(lossless)
        for number in streams:
            at_once = _at_once(network, number) if relayed else len(nodes)
            for flows, groups in _rounds(network, at_once) if len(nodes) > 1 else []:
                results = probers.flows(flows, first, warm, window, _drain(network), streams=number)
                links += _lines(network, "alone" if number == 1 else f"{number} streams", groups, results)
        if len(nodes) > 1:
            results = probers.flows(list(network.pairs), first, warm, window, _drain(network))
            links += _lines(network, "together", _shapers(network, list(network.pairs)), results)
        if lossless != network:
            backend.change(network)
        round_trips, losses = datagrams(probers, network)
    rate = network.slowest_bps
    return Measurement(
        rate_bps=rate,
        accounting=network.accounting,
        framing=network.framing,
        nodes=len(nodes),
        expected_goodput_bps=round(goodput_bps(rate, network.mtu, network.framing)) if rate else None,
        warm_seconds=warm,
        window_seconds=window,
        links=tuple(links),
        round_trips=round_trips,
        losses=losses,
        aggregate_bps=round(sum(each.goodput_bps for each in links if _counts_once(network, each))),
        wall_seconds=round(time.monotonic() - began, 3),
    )


def _counts_once(network: Network, line: Goodput) -> bool:
    return line.phase == "together" and (network.accounting == "pair" or line.direction == "up")


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


def _at_once(network: Network, streams: int) -> int:
    """Flows in a round where the delay line relays. TCP makes super-packets of a millisecond of a connection's rate, of
    two segments at least (tcp_tso_autosize), so that many connections make many more of them, and each is relayed."""
    rate = max((link.rate_bps or 10**9 for link in network.links), default=10**9)
    if streams == 1:
        return len(network.nodes)
    fewest = min(2, segments_of(network, 0))
    super_packet_bytes = max(fewest * network.mtu, rate / streams / 8 / 1000)
    return max(1, int(DELAYED_PACKETS_PER_SECOND * super_packet_bytes * 8 / rate))


def _rounds(network: Network, at_once: int) -> list[tuple[list[Flow], list[Group]]]:
    """The rounds of "alone", and which shapers each loads to the full. Not more flows at once, except where it takes
    several to load one shaper."""
    nodes = network.nodes
    alike = network.uniform and network.link.rate_down_bps in (None, network.link.rate_bps)
    if network.accounting == "pair" or alike:
        steps = range(1, len(nodes) if network.accounting == "pair" else 2)
        rings = [[(node, nodes[(node.index + step) % len(nodes)]) for node in nodes] for step in steps]
        parts = [ring[start : start + at_once] for ring in rings for start in range(0, len(ring), at_once)]
        return [(flows, _shapers(network, flows)) for flows in parts]
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
    """Every shaper that the data of `flows` pass."""
    if network.accounting == "pair":
        return [(a, b, "pair", [(a, b)], [(b, a)]) for a, b in flows]
    groups: list[Group] = []
    for node in network.nodes:
        out = [flow for flow in flows if flow[0] == node]
        into = [flow for flow in flows if flow[1] == node]
        groups += [(node, None, "up", out, into)] if out else []
        groups += [(node, None, "down", into, out)] if into else []
    return groups


def _lines(
    network: Network, phase: str, groups: list[Group], flows: dict[Flow, tuple[Window, Window]]
) -> list[Goodput]:
    """Goodput through each shaper that the flows loaded, beside what it should be."""
    return [_line(network, phase, group, flows) for group in groups]


def _line(network: Network, phase: str, group: Group, flows: dict[Flow, tuple[Window, Window]]) -> Goodput:
    node, peer, direction, carried, acknowledged = group
    extra = FRAMING_BYTES[network.framing]
    goodput = arrived = wire = acks = early = 0.0
    for flow in carried:
        beginning, steady = flows[flow]
        payload = network.mtu_of(*flow) - TCP_IP_HEADER_BYTES
        goodput += steady.payload_bytes * 8 / steady.seconds
        arrived += steady.segments * payload * 8 / steady.seconds
        wire += steady.segments * (payload + TCP_IP_HEADER_BYTES + extra) * 8 / steady.seconds
        early += beginning.segments * (payload + TCP_IP_HEADER_BYTES + extra) * 8
    for flow in acknowledged:
        if flow in flows:
            acks += flows[flow][1].acks * ack_bytes(network.framing) * 8 / flows[flow][1].seconds
    rate, binding = _rate(network, node, peer, direction, phase, carried)
    share = arrived / wire if wire else goodput_bps(1.0, network.mtu, network.framing)
    expected = max(rate - acks, rate / 2) * share if rate else None
    seconds = flows[carried[0]][0].seconds if carried else 1.0
    link = network.path(node, peer) if peer else network.link_of(node)
    depth = sizes(network, rate, link, segments_of(network, node.index), 0) if rate else None
    room = None
    if rate and depth:
        rooms = (depth.burst_bytes * 8 + rate * seconds, depth.peak_bytes * 8 + rate * PEAK * seconds)
        room = min(rooms)
    return Goodput(
        phase=phase,
        direction=direction,
        node=node.name,
        peer=peer.name if peer else None,
        goodput_bps=round(goodput),
        arrived_bps=round(arrived),
        expected_bps=round(expected) if expected else None,
        ratio=round(arrived / expected, 5) if expected else None,
        binding=binding,
        ack_share=round(acks / rate, 5) if rate else None,
        first_seconds=round(seconds, 3),
        first_ratio=round(early / room, 5) if room else None,
        resent_segments=round(sum({flow[0]: flows[flow][1].resent for flow in carried}.values())),
    )


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


def prove(
    backend: Backend, network: Network, tolerance: Tolerance | None = None, *, streams: Sequence[int] = (1,)
) -> Proof:
    """Measure and check until an attempt is within tolerance, up to four times: the last one, with `ok`, its `problems`
    and all `attempts`.

    A machine that is busy for a moment makes a true link look slow. What makes one look too fast, or lossy in another
    way than asked, is rarer: after such an attempt two have to be within tolerance, one after the other. Raises
    LinkError where the kernel has something else than asked.
    """
    allowed = tolerance or Tolerance()
    attempts: list[Attempt] = []
    clean, needed = 0, 1
    while clean < needed and len(attempts) < ATTEMPTS:
        backend.check_readback()
        backend.check_isolated()
        measured = measure(backend, network, streams=streams)
        backend.check_readback()
        backend.check_alive()
        problems = check(measured, allowed)
        attempts.append(Attempt(measured=measured, problems=tuple(problems)))
        clean = 0 if problems else clean + 1
        needed = 2 if _more_than_slow(measured, problems, allowed) else needed
    last = attempts[-1]
    found = last.problems or (() if clean == needed else attempts[-2].problems)
    return Proof(
        **vars(last.measured),
        ok=clean == needed,
        problems=found,
        tolerance=asdict(allowed),
        attempts=tuple(attempts),
    )


def verify(
    backend: Backend, network: Network, tolerance: Tolerance | None = None, *, streams: Sequence[int] = (1,)
) -> Proof:
    """What `prove` found; LinkError if that is not what was asked."""
    found = prove(backend, network, tolerance, streams=streams)
    if found.ok:
        return found
    rate, problems = network.slowest_bps, found.problems
    raise LinkError(
        f"links of {format_rate(rate) if rate else 'any rate'} ({network.accounting}) were asked for; "
        f"measured {ATTEMPTS} times, found {'; '.join(problems[:3])}"
        f"{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. "
        "Try again when the machine is idle, with fewer nodes, or with a lower rate."
    )


def _more_than_slow(measured: Measurement, problems: list[str], allowed: Tolerance) -> bool:
    """Whether something is wrong that a busy machine does not explain."""
    fast = any(
        (link.ratio or 0.0) > 1 + allowed.rate or (link.first_ratio or 0.0) > 1 + allowed.rate
        for link in measured.links
    )
    return bool(problems) and (fast or any(loss_problems(loss) for loss in measured.losses))


def proof(network: Network, measured: Measurement) -> str:
    """What a verification found, in words."""
    rated = [link for link in measured.links if link.ratio and link.binding]
    single = [abs(link.off) for link in rated if not link.contended]
    divided = [link.off for link in rated if link.contended]
    whose = "pair" if network.accounting == "pair" else "node"
    rate = network.slowest_bps
    asked = f"{format_rate(rate)} per {whose}" if rate else "no rate"
    if not network.uniform:
        asked = f"links of {asked} and more"
    worst = max(single, default=0.0)
    text = f"{asked} asked, goodput within {worst:.2%} of the expected on all {len(single)} measurements"
    if divided:
        text += f", {statistics.mean(divided):+.2%} in the mean of {len(divided)} where all send to all"
    trips = [(ping.median_us, ping.expected_us) for ping in measured.round_trips if ping.median_us is not None]
    if network.impaired and trips:
        off = max(abs(median - expected) for median, expected in trips) / 1000
        longest = max(expected for _, expected in trips) / 1000
        text += f"; round trips of up to {longest:g} ms within {off:.2f} ms"
    if measured.losses:
        lost = sum(loss.lost for loss in measured.losses) / sum(loss.sent for loss in measured.losses)
        text += f"; {lost:.2%} of datagrams lost"
    return text


def capacity(backend: Backend) -> Capacity:
    """What this machine carries all to all, over links that are now unshaped, and how long a round trip takes there;
    about a second."""
    nodes = backend.network.nodes
    with Probers(backend) as probers:
        flows = probers.flows([(a, b) for a in nodes for b in nodes if a != b], 0.05, 0.1, 0.3, DRAIN_SECONDS)
        round_trips, _ = datagrams(probers, backend.network.unshaped())
    rates = [steady.payload_bytes * 8 / steady.seconds for _, steady in flows.values()]
    pairs = max(1, len(rates))
    return Capacity(
        aggregate_bps=round(sum(rates)),
        per_pair_bps=round(sum(rates) / pairs),
        slowest_pair_bps=round(min(rates, default=0)),
        per_node_bps=round(sum(rates) / len(nodes)),
        nodes=len(nodes),
        round_trip_us=statistics.fmean([each.median_us or 0.0 for each in round_trips] or [0.0]),
    )
