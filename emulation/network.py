"""What a network is: nodes, the link that each has, and whose a rate is. Pure data, no side effects."""

from dataclasses import dataclass
from typing import Literal

from emulation.errors import UsageError
from emulation.units import format_rate

__all__ = [
    "ACK_BYTES",
    "ETHERNET_HEADER_BYTES",
    "FRAMING",
    "TCP_IP_HEADER_BYTES",
    "Accounting",
    "Link",
    "Network",
    "Node",
    "burst_bytes",
    "goodput_bps",
    "gso_bytes",
    "queue_bytes",
    "star",
]

Accounting = Literal["nic", "pair"]

FRAMING = "layer2"
"""What a rate counts: Ethernet header and payload of every packet (MTU + 14), no preamble, checksum or
gap."""

ETHERNET_HEADER_BYTES = 14
TCP_IP_HEADER_BYTES = 52
"""IPv4 20 + TCP 20 + the timestamp option padded to 12 (RFC 7323), which Linux sends on every segment."""

ACK_BYTES = ETHERNET_HEADER_BYTES + TCP_IP_HEADER_BYTES
"""A pure acknowledgement as the shaper counts it."""

MAX_NODES = 250
SMALLEST_RATE_BPS = 10_000
LARGEST_RATE_BPS = 100 * 10**9


@dataclass(frozen=True, kw_only=True)
class Link:
    """One link, the same in both directions."""

    rate_bps: int | None = None
    """bit/s as the kernel is told, layer 2; None: unshaped."""
    delay_us: int = 0
    """One-way delay in microseconds."""
    loss: float = 0.0
    """Fraction of packets lost, 0 to 1."""

    def __post_init__(self) -> None:
        if self.rate_bps is not None and not SMALLEST_RATE_BPS <= self.rate_bps <= LARGEST_RATE_BPS:
            raise UsageError(
                f"a link of {self.rate_bps} bit/s cannot be shaped: allowed are "
                f"{format_rate(SMALLEST_RATE_BPS)} to {format_rate(LARGEST_RATE_BPS)}; e.g. 300mbit."
            )
        if self.delay_us < 0:
            raise UsageError(f"a delay of {self.delay_us} us is negative; type for example 20ms.")
        if not 0.0 <= self.loss < 1.0:
            raise UsageError(f"a loss of {self.loss} is not a fraction from 0 to below 1; type for example 1%.")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A place where one trainer runs."""

    index: int
    """0 to N-1; the trainer's rank."""
    name: str
    """Its network namespace, and its prefix in printed output."""
    address: str
    """Its IPv4 address on the emulated subnet."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Nodes around one switch, all with the same link."""

    nodes: tuple[Node, ...]
    link: Link
    accounting: Accounting
    """"nic": the rate is a node's access link, shared by all its peers. "pair": each ordered pair has its
    own."""
    mtu: int = 1500
    congestion_control: str | None = None
    """TCP's, per namespace; None: reno, the one that every kernel allows and that restarts well after idle
    gaps."""

    def __post_init__(self) -> None:
        if self.accounting not in ("nic", "pair"):
            raise UsageError(f"accounting {self.accounting!r} is unknown; type nic or pair.")
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise UsageError(f"{len(self.nodes)} nodes were asked for; allowed are 1 to {MAX_NODES}.")
        if not 576 <= self.mtu <= 9000:
            raise UsageError(f"an MTU of {self.mtu} was asked for; allowed are 576 to 9000, usual is 1500.")
        if [node.index for node in self.nodes] != list(range(len(self.nodes))):
            raise UsageError("a network's nodes must be numbered 0, 1, 2 … in order.")

    def peers(self, node: Node) -> tuple[Node, ...]:
        """Every other node."""
        return tuple(other for other in self.nodes if other.index != node.index)


def star(n: int, link: Link, accounting: Accounting) -> Network:
    """`n` nodes n0, n1 … at 10.77.0.1, 10.77.0.2 … around one switch."""
    if not 1 <= n <= MAX_NODES:
        raise UsageError(f"{n} nodes were asked for; allowed are 1 to {MAX_NODES}.")
    nodes = tuple(Node(index=k, name=f"n{k}", address=f"10.77.0.{k + 1}") for k in range(n))
    return Network(nodes=nodes, link=link, accounting=accounting)


def goodput_bps(rate_bps: float, mtu: int = 1500) -> float:
    """The payload in bit/s that one TCP stream carries when full segments fill `rate_bps` of layer 2.

    Each packet of MTU + 14 bytes on the wire (IEEE 802.3 header) holds MTU - 52 bytes of payload: IPv4 (RFC
    791) 20, TCP (RFC 9293) 20, timestamps (RFC 7323) 12. At MTU 1500 that is 1448/1514 = 95.6 %.
    """
    return rate_bps * (mtu - TCP_IP_HEADER_BYTES) / (mtu + ETHERNET_HEADER_BYTES)


def burst_bytes(rate_bps: int, mtu: int = 1500) -> int:
    """A token bucket's depth in bytes: 3.5 ms at the rate, from 5 frames up to 128 KiB, then 1 ms at the
    rate.

    128 KiB holds two of the 64 KiB super-packets that TCP sends, without which fast links segment in
    software; on a slow link it would be a hole (105 ms of 10 Mbit/s pass unshaped after each pause), and so
    would megabytes on a fast one.
    """
    frame = mtu + ETHERNET_HEADER_BYTES
    return max(5 * frame, min(128 * 1024, int(rate_bps * 0.0035 / 8)), int(rate_bps * 0.001 / 8))


def queue_bytes(rate_bps: int, mtu: int = 1500) -> int:
    """A shaper's queue in bytes: 40 ms at the rate, at least 20 frames, at most 4 MB, beside the burst.

    A deeper queue only makes small messages wait behind bulk data; a shallower one drops whole bursts when
    several peers send to one node at once.
    """
    frame = mtu + ETHERNET_HEADER_BYTES
    return max(20 * frame, min(4_000_000, int(rate_bps * 0.040 / 8)))


def gso_bytes(rate_bps: int | None, mtu: int = 1500) -> int:
    """The largest super-packet in bytes that TCP may hand to a shaper: 2 ms at the rate, two packets to 64
    KiB.

    A token bucket passes a super-packet whole, and small messages wait behind it: 64 KiB is 52 ms of 10
    Mbit/s. Open connections keep the size that they began with.
    """
    if rate_bps is None:
        return 65536
    return max(2 * mtu, min(65536, int(rate_bps * 0.002 / 8)))
