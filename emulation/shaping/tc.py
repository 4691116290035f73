"""Shapers as data that return their tc(8) lines, and what the kernel should report once they are in place.

nic:  token bucket (tbf) on the node's eth0 for what it sends, another on the switch's port for what it
receives. pair: htb on eth0 with one class per destination; the switch's port only queues, so that received
bytes are counted. A shaper replaces the one before it in a single graft: `handle` has to differ from the
present one.
"""

from dataclasses import dataclass, field
from typing import Any

from emulation.network import Link, Network, Node, burst_bytes, queue_bytes

__all__ = ["Htb", "HtbClass", "Pfifo", "Shaper", "Tbf", "differences", "node_shapers"]

NODE_DEVICE = "eth0"
OPEN_QUEUE_PACKETS = 10_000
"""A queue that should never fill: where nothing is shaped, or where only counting is wanted."""
PAIR_QUEUE_PACKETS = 200
PAIR_BURST_BYTES = 64 * 1024
REST_RATE_BPS = 1_000_000
"""For what matches no class. Nothing should: addresses are static, IPv6 and multicast are off."""
REST_CLASS = 0xFFF
TICK_NS = 64
"""The kernel keeps a bucket's depth as time at the rate, in ticks of 64 ns (PSCHED_SHIFT)."""


@dataclass(frozen=True, kw_only=True)
class Pfifo:
    """A plain queue: shapes nothing, counts every byte."""

    limit_packets: int = OPEN_QUEUE_PACKETS

    def lines(self, device: str, handle: int) -> list[str]:
        """What to give to `tc -batch`."""
        return [f"qdisc replace dev {device} root handle {handle:x}: pfifo limit {self.limit_packets}"]

    def expected(self) -> dict[str, Any]:
        """What the kernel should report."""
        return {"kind": "pfifo", "limit_packets": self.limit_packets, "classes": {}}


@dataclass(frozen=True, kw_only=True)
class Tbf:
    """A token bucket with a queue."""

    rate_bps: int
    burst_bytes: int
    limit_bytes: int
    """Of the queue."""

    def lines(self, device: str, handle: int) -> list[str]:
        """What to give to `tc -batch`."""
        return [
            f"qdisc replace dev {device} root handle {handle:x}: tbf rate {self.rate_bps}bit "
            f"burst {self.burst_bytes}b limit {self.limit_bytes}b"
        ]

    def expected(self) -> dict[str, Any]:
        """What the kernel should report."""
        return {
            "kind": "tbf",
            "rate_bps": self.rate_bps,
            "burst_bytes": self.burst_bytes,
            "limit_bytes": self.limit_bytes,
            "classes": {},
        }


@dataclass(frozen=True, kw_only=True)
class HtbClass:
    """One destination's share."""

    minor: int
    destination: str | None
    """An IPv4 address; None: the rest."""
    rate_bps: int
    burst_bytes: int
    limit_packets: int

    def lines(self, device: str, handle: int) -> list[str]:
        """Class, leaf and filter."""
        rate, burst, quantum = (
            f"{self.rate_bps}bit",
            f"{self.burst_bytes}b",
            max(1514, min(self.burst_bytes, 60_000)),
        )
        class_id = f"{handle:x}:{self.minor:x}"
        lines = [
            f"class replace dev {device} parent {handle:x}: classid {class_id} htb rate {rate} ceil {rate} "
            f"burst {burst} cburst {burst} quantum {quantum}",
            f"qdisc replace dev {device} parent {class_id} pfifo limit {self.limit_packets}",
        ]
        if self.destination:
            lines.append(
                f"filter add dev {device} parent {handle:x}: protocol ip prio 1 u32 "
                f"match ip dst {self.destination}/32 flowid {class_id}"
            )
        return lines

    def expected(self) -> dict[str, Any]:
        """What the kernel should report."""
        return {
            "rate_bps": self.rate_bps,
            "ceil_bps": self.rate_bps,
            "burst_bytes": self.burst_bytes,
            "cburst_bytes": self.burst_bytes,
            "limit_packets": self.limit_packets,
        }


@dataclass(frozen=True, kw_only=True)
class Htb:
    """A class per destination, none of which borrows from another."""

    classes: tuple[HtbClass, ...] = field(default=())

    def lines(self, device: str, handle: int) -> list[str]:
        """What to give to `tc -batch`."""
        root = f"qdisc replace dev {device} root handle {handle:x}: htb default {REST_CLASS:x}"
        return [root, *(line for each in self.classes for line in each.lines(device, handle))]

    def expected(self) -> dict[str, Any]:
        """What the kernel should report."""
        return {
            "kind": "htb",
            "default_class": REST_CLASS,
            "classes": {f"{each.minor:x}": each.expected() for each in self.classes},
        }


Shaper = Pfifo | Tbf | Htb


def node_shapers(network: Network, node: Node, link: Link) -> tuple[Shaper, Shaper]:
    """The shapers of one node: on its eth0 (what it sends), on the switch's port (what it receives)."""
    rate, mtu = link.rate_bps, network.mtu
    if rate is None:
        return Pfifo(), Pfifo()
    if network.accounting == "pair":
        return _per_destination(network, node, rate), Pfifo()
    both = Tbf(rate_bps=rate, burst_bytes=burst_bytes(rate, mtu), limit_bytes=queue_bytes(rate, mtu))
    return both, both


def _per_destination(network: Network, node: Node, rate_bps: int) -> Htb:
    burst = max(min(PAIR_BURST_BYTES, burst_bytes(rate_bps, network.mtu)), int(rate_bps * 0.0005 / 8))
    packets = max(20, min(PAIR_QUEUE_PACKETS, queue_bytes(rate_bps, network.mtu) // (network.mtu + 14)))
    classes = [
        HtbClass(
            minor=peer.index + 1,
            destination=peer.address,
            rate_bps=rate_bps,
            burst_bytes=burst,
            limit_packets=packets,
        )
        for peer in network.peers(node)
    ]
    rest = HtbClass(
        minor=REST_CLASS,
        destination=None,
        rate_bps=REST_RATE_BPS,
        burst_bytes=burst_bytes(REST_RATE_BPS, network.mtu),
        limit_packets=20,
    )
    return Htb(classes=(*classes, rest))


def differences(expected: dict[str, Any], found: dict[str, Any], where: str) -> list[str]:
    """What the kernel has that was not asked for, in plain sentences; an empty list is a match."""
    problems = []
    for key, asked in expected.items():
        have = found.get(key)
        if key == "classes":
            problems += _class_differences(asked, have or {}, where)
        elif key.endswith("burst_bytes"):
            rate = expected.get("rate_bps", 0)
            # tc rounds the bucket's time to microseconds, the kernel down to its ticks
            slack = max(2, 2 * rate * TICK_NS / 8e9 + rate / 8e6)
            if not isinstance(have, int) or abs(have - asked) > slack:
                problems.append(f"{where}: {key} was set to {asked}, the kernel has {have}")
        elif key.endswith("_bps") and isinstance(have, int) and have // 8 == asked // 8:
            continue  # the kernel keeps whole bytes per second
        elif have != asked:
            problems.append(f"{where}: {key} was set to {asked}, the kernel has {have}")
    return problems


def _class_differences(asked: dict[str, Any], found: dict[str, Any], where: str) -> list[str]:
    problems = [f"{where}: class {minor} was not asked for" for minor in found if minor not in asked]
    for minor, expected in asked.items():
        if minor not in found:
            problems.append(f"{where}: class {minor} is missing")
        else:
            problems += differences(expected, found[minor], f"{where} class {minor}")
    return problems
