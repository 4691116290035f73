"""Shapers as data that return their tc(8) lines, and what the kernel should report once they are in place.

nic:  token bucket (tbf) on the node's eth0 for what it sends, another on the switch's port for what it
receives. pair: htb on eth0 with one class per destination; the switch's port only queues, so that received
bytes are counted. A shaper replaces the one before it in a single graft when its handle is new, and is changed in
place, with its counters and its queue, when the handle is the same. A queue behind one has a handle that says what it
is, so that one of another kind is always a new one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emulation.kernel.facts import ShaperFacts
from emulation.kernel.netlink import TICK_NS
from emulation.shaping.netem import Netem
from emulation.shaping.sizes import Sizes, segments_of, sizes
from emulation.spec.network import ETHERNET_HEADER_BYTES, FRAMING_BYTES, Link, Network, Node

__all__ = ["Htb", "HtbClass", "Pfifo", "Shaper", "Tbf", "change_lines", "differences", "node_shapers"]

OPEN_QUEUE_PACKETS = 10_000
"""A queue that should never fill: where nothing is shaped, or where only counting is wanted."""
REST_RATE_BPS = 1_000_000
"""For what matches no class. Nothing should: addresses are static, IPv6 and multicast are off."""
REST_CLASS = 0xFFF
LAST_HANDLE, _SPARE_HANDLE = 0xFFE, 0xFFF
"""Of shapers, and of what stands for a moment between two of different kinds. Queues behind them have higher ones."""


@dataclass(frozen=True, kw_only=True)
class Pfifo:
    """A plain queue, or a netem: shapes nothing, counts every byte."""

    limit_packets: int = OPEN_QUEUE_PACKETS
    netem: Netem | None = None

    @property
    def root(self) -> str:
        """What can be changed in place into what."""
        return f"netem {self.netem.variant}" if self.netem else "pfifo"

    def lines(self, device: str, handle: int, *, change: bool = False) -> list[str]:
        """What to give to `tc -batch`."""
        del change  # replace with the same handle is a change
        what = self.netem.words() if self.netem else f"pfifo limit {self.limit_packets}"
        return [f"qdisc replace dev {device} root handle {handle:x}: {what}"]

    def expected(self) -> ShaperFacts:
        """What the kernel should report."""
        if self.netem:
            return {**self.netem.expected(), "classes": {}}
        return {"kind": "pfifo", "limit_packets": self.limit_packets, "classes": {}}


@dataclass(frozen=True, kw_only=True)
class Tbf:
    """Two token buckets with one queue: see `emulation.shaping.sizes`."""

    rate_bps: int
    sizes: Sizes
    overhead_bytes: int = 0
    """What the rate counts of each packet beyond layer 2."""
    netem: Netem | None = None
    root = "tbf"

    def lines(self, device: str, handle: int, *, change: bool = False) -> list[str]:
        """What to give to `tc -batch`."""
        del change
        overhead = f" overhead {self.overhead_bytes}" if self.overhead_bytes else ""
        lines = [
            f"qdisc replace dev {device} root handle {handle:x}: tbf rate {self.rate_bps}bit{overhead} "
            f"burst {self.sizes.burst_bytes}b limit {self.sizes.queue_bytes}b "
            f"peakrate {self.sizes.peak_bps}bit mtu {self.sizes.peak_bytes}b"
        ]
        if self.netem:
            lines.append(_leaf_line(device, handle, 1, self.sizes.queue_bytes, self.netem))
        return lines

    def expected(self) -> ShaperFacts:
        """What the kernel should report."""
        expected: ShaperFacts = {
            "kind": "tbf",
            "rate_bps": self.rate_bps,
            "overhead_bytes": self.overhead_bytes,
            "burst_bytes": self.sizes.burst_bytes,
            "peak_bps": self.sizes.peak_bps,
            "peak_burst_bytes": self.sizes.peak_bytes,
            "limit_bytes": self.sizes.queue_bytes,
            "classes": {},
        }
        if self.netem:
            expected["leaf"] = self.netem.expected()
        return expected


@dataclass(frozen=True, kw_only=True)
class HtbClass:
    """One destination's share."""

    minor: int
    destination: str | None
    """An IPv4 address; None: the rest."""
    rate_bps: int
    sizes: Sizes
    overhead_bytes: int = 0
    netem: Netem | None = None

    def lines(self, device: str, handle: int, *, change: bool = False) -> list[str]:
        """Class, leaf and filter."""
        quantum = max(1514, min(self.sizes.peak_bytes, 60_000))
        overhead = f" overhead {self.overhead_bytes}" if self.overhead_bytes else ""
        class_id = f"{handle:x}:{self.minor:x}"
        lines = [
            f"class replace dev {device} parent {handle:x}: classid {class_id} htb rate {self.rate_bps}bit{overhead} "
            f"ceil {self.sizes.peak_bps}bit burst {self.sizes.burst_bytes}b cburst {self.sizes.peak_bytes}b "
            f"quantum {quantum}",
            _leaf_line(device, handle, self.minor, self.sizes.queue_bytes, self.netem),
        ]
        if self.destination and not change:
            lines.append(
                f"filter add dev {device} parent {handle:x}: protocol ip prio 1 u32 "
                f"match ip dst {self.destination}/32 flowid {class_id}"
            )
        return lines

    def expected(self) -> ShaperFacts:
        """What the kernel should report."""
        expected: ShaperFacts = {
            "rate_bps": self.rate_bps,
            "overhead_bytes": self.overhead_bytes,
            "ceil_bps": self.sizes.peak_bps,
            "burst_bytes": self.sizes.burst_bytes,
            "cburst_bytes": self.sizes.peak_bytes,
        }
        if self.netem:
            expected["leaf"] = self.netem.expected()
        else:
            expected["limit_bytes"] = self.sizes.queue_bytes
        return expected


@dataclass(frozen=True, kw_only=True)
class Htb:
    """A class per destination, none of which borrows from another."""

    classes: tuple[HtbClass, ...] = field(default=())
    """The rest first: what finds no class passes unshaped."""
    root = "htb"

    def lines(self, device: str, handle: int, *, change: bool = False) -> list[str]:
        """What to give to `tc -batch`."""
        root = [] if change else [f"qdisc replace dev {device} root handle {handle:x}: htb default {REST_CLASS:x}"]
        return [*root, *(line for each in self.classes for line in each.lines(device, handle, change=change))]

    def expected(self) -> ShaperFacts:
        """What the kernel should report."""
        return {
            "kind": "htb",
            "default_class": REST_CLASS,
            "filters": sorted(f"{each.destination} -> {each.minor:x}" for each in self.classes if each.destination),
            "classes": {f"{each.minor:x}": each.expected() for each in self.classes},
        }


def _leaf_line(device: str, handle: int, minor: int, queue_bytes: int, netem: Netem | None) -> str:
    """The queue behind a token bucket (minor 1) or a class."""
    own = 0x1000 * (1 + (netem.variant if netem else 0)) + minor
    what = netem.words() if netem else f"bfifo limit {queue_bytes}b"
    return f"qdisc replace dev {device} parent {handle:x}:{minor:x} handle {own:x}: {what}"


Shaper = Pfifo | Tbf | Htb


def node_shapers(network: Network, node: Node, *, netem: bool = False) -> tuple[Shaper, Shaper]:
    """The shapers of one node: on its eth0 (what it sends), on the switch's port (what it receives).

    `netem`: delays and losses are the shaper's own; otherwise they come after it (the delay line).
    """
    segments = segments_of(network, node.index)
    if network.accounting == "pair":
        if network.shaped:
            return _per_destination(network, node, segments, netem=netem), Pfifo()
        return _bucket(network, network.link, None, segments, 0, netem=netem), Pfifo()
    link = network.link_of(node)
    round_trip = max((network.round_trip_us(node, peer) for peer in network.peers(node)), default=0)
    return (
        _bucket(network, link, link.rate_bps, segments, round_trip, netem=netem),
        _bucket(network, link, link.down_bps, segments, round_trip, netem=False),
    )


def _overhead(network: Network) -> int:
    return FRAMING_BYTES[network.framing] - ETHERNET_HEADER_BYTES


def _bucket(
    network: Network, link: Link, rate_bps: int | None, segments: int, round_trip_us: int, *, netem: bool
) -> Tbf | Pfifo:
    if rate_bps is None:
        return Pfifo(netem=Netem.of(link, OPEN_QUEUE_PACKETS) if netem and link.impaired else None)
    depth = sizes(network, rate_bps, link, segments, round_trip_us)
    delayed = Netem.of(link, _packets(network, depth.queue_bytes, rate_bps, link)) if netem and link.impaired else None
    return Tbf(rate_bps=rate_bps, sizes=depth, overhead_bytes=_overhead(network), netem=delayed)


def _packets(network: Network, queue_bytes: int, rate_bps: int, link: Link) -> int:
    """netem's queue, with room for what is on its way (bandwidth-delay product)."""
    on_their_way = rate_bps * (link.delay_us + 4 * link.jitter_us) / 8e6
    return max(20, int((queue_bytes + 2 * on_their_way) / (network.mtu + ETHERNET_HEADER_BYTES)))


def _per_destination(network: Network, node: Node, segments: int, *, netem: bool) -> Htb:
    classes = []
    for peer in network.peers(node):
        link = network.path(node, peer)
        rate = link.rate_bps
        assert rate is not None, "a network of pairs has a rate for each or for none"
        depth = sizes(network, rate, link, segments, network.round_trip_us(node, peer))
        delayed = netem and link.impaired
        classes.append(
            HtbClass(
                minor=peer.index + 1,
                destination=peer.address,
                rate_bps=rate,
                sizes=depth,
                overhead_bytes=_overhead(network),
                netem=Netem.of(link, _packets(network, depth.queue_bytes, rate, link)) if delayed else None,
            )
        )
    rest = HtbClass(
        minor=REST_CLASS,
        destination=None,
        rate_bps=REST_RATE_BPS,
        sizes=sizes(network, REST_RATE_BPS, Link(), 2, 0),
    )
    return Htb(classes=(rest, *classes))


def change_lines(before: Shaper, after: Shaper, device: str, handle: int) -> list[str]:
    """What makes `before` become `after`: in place, unless the kernel can only replace one by the other."""
    if before.root != after.root:
        between = f"qdisc replace dev {device} root handle {_SPARE_HANDLE:x}: pfifo limit {OPEN_QUEUE_PACKETS}"
        return [between, *after.lines(device, handle)]
    had = before.lines(device, handle, change=True)
    lines = [line for line in after.lines(device, handle, change=True) if line not in had]
    if isinstance(before, Tbf) and isinstance(after, Tbf) and before.netem and not after.netem:
        lines.append(_leaf_line(device, handle, 1, after.sizes.queue_bytes, None))
    return lines


def differences(expected: ShaperFacts, found: ShaperFacts, where: str) -> list[str]:
    """What the kernel has that was not asked for, in plain sentences; an empty list is a match."""
    problems = []
    if "leaf" in found and "leaf" not in expected:
        problems.append(f"{where}: a {found['leaf'].get('kind')} was not asked for")
    problems += [f"{where}: a {kind} was not asked for" for kind in found.get("others", ())]
    facts: Mapping[str, Any] = expected
    for key, asked in facts.items():
        have = found.get(key)
        if key == "classes":
            problems += _class_differences(asked, found.get("classes", {}), where)
        elif key == "filters":
            problems += _filter_differences(asked, found.get("filters", []), where)
        elif key == "leaf":
            problems += differences(asked, found.get("leaf", {}), f"{where} leaf")
        elif key.endswith("_share"):
            if not isinstance(have, float) or abs(have - asked) > 2e-6:
                problems.append(f"{where}: {key} was set to {asked}, the kernel has {have}")
        elif key.endswith("burst_bytes"):
            peak = key in ("peak_burst_bytes", "cburst_bytes")
            rate = expected.get("ceil_bps", expected.get("peak_bps", 0)) if peak else expected.get("rate_bps", 0)
            # tc rounds the bucket's time to microseconds, the kernel down to its ticks
            slack = 2 + 2 * rate * TICK_NS / 8e9 + rate / 8e6 + expected.get("overhead_bytes", 0)
            if not isinstance(have, int) or abs(have - asked) > slack:
                problems.append(f"{where}: {key} was set to {asked}, the kernel has {have}")
        elif key.endswith("_bps") and isinstance(have, int) and have // 8 == asked // 8:
            continue  # the kernel keeps whole bytes per second
        elif have != asked:
            problems.append(f"{where}: {key} was set to {asked}, the kernel has {have}")
    return problems


def _filter_differences(asked: list[str], found: list[str], where: str) -> list[str]:
    problems = [f"{where}: the filter {each} is missing" for each in asked if each not in found]
    extra = list(found)
    for each in asked:
        if each in extra:
            extra.remove(each)
    return [*problems, *(f"{where}: the filter {each} was not asked for" for each in extra)]


def _class_differences(asked: dict[str, ShaperFacts], found: dict[str, ShaperFacts], where: str) -> list[str]:
    problems = [f"{where}: class {minor} was not asked for" for minor in found if minor not in asked]
    for minor, expected in asked.items():
        if minor not in found:
            problems.append(f"{where}: class {minor} is missing")
        else:
            problems += differences(expected, found[minor], f"{where} class {minor}")
    return problems
