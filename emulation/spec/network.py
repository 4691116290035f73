"""What a network is: nodes, the links between them, and whose a rate is. Pure data, no side effects.

    nic    a node's link is its access link: rate up and rate down, shared by all its peers
    pair   each ordered pair of nodes has a link of its own

Delay, jitter, loss and reordering act on what a node sends, once per packet: a round trip between two nodes is the
sum of what both ends add.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypedDict

from emulation.errors import UsageError
from emulation.spec.units import format_delay, format_percent, format_rate

__all__ = [
    "ETHERNET_HEADER_BYTES",
    "FRAMING_BYTES",
    "TCP_IP_HEADER_BYTES",
    "Accounting",
    "Distribution",
    "Framing",
    "Link",
    "LinkSettings",
    "Network",
    "Node",
    "ack_bytes",
    "goodput_bps",
    "star",
]

Accounting = Literal["nic", "pair"]
Framing = Literal["layer2", "ethernet"]
Distribution = Literal["normal", "uniform", "pareto"]

FRAMING_BYTES: dict[str, int] = {"layer2": 14, "ethernet": 38}
"""What a rate counts of each packet beside its IP part. layer2: the Ethernet header. ethernet: also checksum 4,
preamble 8 and gap 12 (IEEE 802.3), as a bare-metal wire does."""
ETHERNET_HEADER_BYTES = 14
TCP_IP_HEADER_BYTES = 52
"""IPv4 20 + TCP 20 + the timestamp option padded to 12 (RFC 7323), which Linux sends on every segment."""

MAX_NODES = 250
SMALLEST_RATE_BPS = 10_000
LARGEST_RATE_BPS = 100 * 10**9
LARGEST_DELAY_US = 10 * 10**6
LARGEST_QUEUE_BYTES = 2**31 - 1


class LinkSettings(TypedDict, total=False):
    """Some fields of a `Link`, to be changed."""

    rate_bps: int | None
    rate_down_bps: int | None
    delay_us: int
    jitter_us: int
    distribution: Distribution
    loss: float
    loss_burst: float | None
    reorder: float
    queue_bytes: int | None
    queue_us: int | None


@dataclass(frozen=True, kw_only=True)
class Link:
    """A node's link, or that of an ordered pair of nodes."""

    rate_bps: int | None = None
    """bit/s of what the node sends; None: unshaped."""
    rate_down_bps: int | None = None
    """bit/s of what the node receives; None: as `rate_bps`."""
    delay_us: int = 0
    """One-way delay in microseconds."""
    jitter_us: int = 0
    """Spread of the delay: standard deviation (normal), half the width (uniform), scale (pareto, shape 3)."""
    distribution: Distribution = "normal"
    """Law of the jitter."""
    loss: float = 0.0
    """Fraction of packets lost, 0 to below 1."""
    loss_burst: float | None = None
    """Mean number of packets lost in a row (Gilbert-Elliott); None: each packet on its own."""
    reorder: float = 0.0
    """Fraction of packets that are not delayed and so overtake others."""
    queue_bytes: int | None = None
    """Depth of the drop-tail queue before the shaper; None: derived from rate and round trip."""
    queue_us: int | None = None
    """The same as time at the rate; at most one of the two."""

    def __post_init__(self) -> None:
        for rate in (self.rate_bps, self.rate_down_bps):
            if rate is not None and not SMALLEST_RATE_BPS <= rate <= LARGEST_RATE_BPS:
                raise UsageError(
                    f"a link of {rate} bit/s cannot be shaped: allowed are "
                    f"{format_rate(SMALLEST_RATE_BPS)} to {format_rate(LARGEST_RATE_BPS)}; e.g. 300mbit."
                )
        if self.rate_down_bps is not None and self.rate_bps is None:
            raise UsageError("a link has a rate down but none up; give both, for example 40mbit up and 300mbit down.")
        for name, value in (("delay", self.delay_us), ("jitter", self.jitter_us)):
            if not 0 <= value <= LARGEST_DELAY_US:
                raise UsageError(
                    f"a {name} of {value} us was asked for; allowed are 0 to {format_delay(LARGEST_DELAY_US)}."
                )
        if self.distribution not in ("normal", "uniform", "pareto"):
            raise UsageError(f"jitter distribution {self.distribution!r} is unknown; type normal, uniform or pareto.")
        if self.jitter_us and not self.delay_us:
            raise UsageError("a jitter varies a delay, and there is none; give a delay too, for example 20ms.")
        if not 0.0 <= self.loss < 1.0:
            raise UsageError(
                f"a loss of {format_percent(self.loss)} was asked for; allowed are 0% to below 100%, for example 1%; "
                'what cuts a link off is fault = "down" in a schedule.'
            )
        if not 0.0 <= self.reorder < 1.0:
            raise UsageError(
                f"a reordering of {format_percent(self.reorder)} was asked for; allowed are 0% to below 100%."
            )
        if self.reorder and not self.delay_us:
            raise UsageError("reordered packets overtake delayed ones, and there is no delay; give one too, e.g. 20ms.")
        if self.loss_burst is not None and not (self.loss and 1.0 <= self.loss_burst <= 1000.0):
            raise UsageError(
                f"losses in runs of {self.loss_burst:g} packets were asked for; allowed are 1 to 1000, "
                "with a loss above 0%."
            )
        if self.loss_burst is not None and self.loss_burst < self.smallest_burst - 1e-9:
            smallest = math.ceil(self.smallest_burst * 100 - 1e-6) / 100
            raise UsageError(
                f"a loss of {format_percent(self.loss)} in runs of {self.loss_burst:g} packets is impossible; "
                f"the shortest are {smallest:g} packets, or leave the runs out."
            )
        if self.queue_bytes is not None and self.queue_us is not None:
            raise UsageError("a queue was given both in bytes and in time; give one of them.")
        if self.queue_bytes is not None and not 1 <= self.queue_bytes <= LARGEST_QUEUE_BYTES:
            raise UsageError(f"a queue of {self.queue_bytes} bytes was asked for; allowed are 1B to 2GB, e.g. 500kB.")
        if self.queue_us is not None and not 1 <= self.queue_us <= LARGEST_DELAY_US:
            raise UsageError(
                f"a queue of {self.queue_us} us was asked for; allowed are up to {format_delay(LARGEST_DELAY_US)}."
            )

    @property
    def down_bps(self) -> int | None:
        """Rate of what the node receives."""
        return self.rate_bps if self.rate_down_bps is None else self.rate_down_bps

    @property
    def impaired(self) -> bool:
        """Whether it delays, loses or reorders, which needs more than a shaper."""
        return bool(self.delay_us or self.loss)

    @property
    def smallest_burst(self) -> float:
        """The mean run of losses when one packet comes between any two runs: shorter ones cannot lose so much."""
        return max(1.0, self.loss / (1.0 - self.loss))

    @property
    def packetwise(self) -> bool:
        """Whether packets meet different fates, so that super-packets must not travel as one."""
        return bool(self.loss or self.reorder)


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
    """Nodes around one switch."""

    nodes: tuple[Node, ...]
    link: Link
    """Every node's, or every pair's, unless `node_links` or `pair_links` says otherwise."""
    accounting: Accounting
    """"nic": the rate is a node's access link, shared by all its peers. "pair": each ordered pair has its
    own."""
    node_links: tuple[tuple[int, Link], ...] = ()
    """Nodes whose link differs: (index, link)."""
    pair_links: tuple[tuple[int, int, Link], ...] = ()
    """Ordered pairs whose link differs: (from, to, link); with accounting "pair" only."""
    mtu: int = 1500
    node_mtus: tuple[tuple[int, int], ...] = ()
    """Nodes whose MTU differs: (index, bytes), at most `mtu`."""
    framing: Framing = "layer2"
    """What a rate counts."""
    congestion_control: str | None = None
    """TCP's, per namespace; None: reno, the one that every kernel allows and that restarts well after idle
    gaps."""
    smallest_message_bytes: int | None = None
    """The smallest message of interest, whose time on the link has to be right: see `emulation.shaping.sizes`. None:
    not known."""

    def __post_init__(self) -> None:
        if self.accounting not in ("nic", "pair"):
            raise UsageError(f"accounting {self.accounting!r} is unknown; type nic or pair.")
        if self.framing not in FRAMING_BYTES:
            raise UsageError(f"framing {self.framing!r} is unknown; type {' or '.join(FRAMING_BYTES)}.")
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise UsageError(f"{len(self.nodes)} nodes were asked for; allowed are 1 to {MAX_NODES}.")
        if not 576 <= self.mtu <= 9000:
            raise UsageError(f"an MTU of {self.mtu} was asked for; allowed are 576 to 9000, usual is 1500.")
        if [node.index for node in self.nodes] != list(range(len(self.nodes))):
            raise UsageError("a network's nodes must be numbered 0, 1, 2 … in order.")
        named = [index for index, _ in (*self.node_links, *self.node_mtus)]
        named += [end for source, target, _ in self.pair_links for end in (source, target)]
        for index in named:
            if not 0 <= index < len(self.nodes):
                raise UsageError(f"a link of node {index} was given, but the nodes are 0 to {len(self.nodes) - 1}.")
        for source, target, _ in self.pair_links:
            if source == target:
                raise UsageError(f"a link from node {source} to itself was given; a pair is two nodes.")
        if self.accounting == "pair" and len({link.rate_bps is None for link in self.links}) > 1:
            raise UsageError("some pairs have a rate and others have none; give one to all, or to none.")
        if self.pair_links and self.accounting != "pair":
            raise UsageError("links of pairs were given with accounting 'nic'; type pair.")
        for index, mtu in self.node_mtus:
            if not 576 <= mtu <= self.mtu:
                raise UsageError(f"node {index} has an MTU of {mtu}; allowed are 576 to the network's {self.mtu}.")

    def peers(self, node: Node) -> tuple[Node, ...]:
        """Every other node."""
        return tuple(other for other in self.nodes if other.index != node.index)

    @property
    def pairs(self) -> tuple[tuple[Node, Node], ...]:
        """Every ordered pair of nodes."""
        return tuple((node, peer) for node in self.nodes for peer in self.peers(node))

    @cached_property
    def _own(self) -> dict[int, Link]:
        return dict(self.node_links)

    @cached_property
    def _between(self) -> dict[tuple[int, int], Link]:
        return {(source, target): link for source, target, link in self.pair_links}

    def link_of(self, node: Node) -> Link:
        """A node's own link."""
        return self._own.get(node.index, self.link)

    def path(self, source: Node, target: Node) -> Link:
        """What a packet from `source` to `target` meets.

        The rate is that of the pair where pairs are shaped (the smaller of up and down for nodes that differ), and
        the most that one flow can have, alone, where access links are.
        """
        between = self._between.get((source.index, target.index))
        if between is not None:
            return between
        own = self.link_of(source)
        rates = [rate for rate in (own.rate_bps, self.link_of(target).down_bps) if rate is not None]
        return replace(own, rate_bps=min(rates, default=None), rate_down_bps=None)

    def mtu_of(self, *nodes: Node) -> int:
        """The MTU of a node, or the one that a path between nodes allows."""
        own = dict(self.node_mtus)
        return min(own.get(node.index, self.mtu) for node in nodes)

    def round_trip_us(self, source: Node, target: Node) -> int:
        """What the two paths' delays add up to."""
        return self.path(source, target).delay_us + self.path(target, source).delay_us

    @property
    def longest_round_trip_us(self) -> int:
        """Longest round trip of any pair, in microseconds."""
        return max((self.round_trip_us(a, b) for a, b in self.pairs), default=0)

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """Every link there is, once each: of nodes, or of ordered pairs."""
        if self.accounting == "pair" and len(self.nodes) > 1:
            return tuple(dict.fromkeys(self.path(a, b) for a, b in self.pairs))
        return tuple(dict.fromkeys(self.link_of(node) for node in self.nodes))

    @property
    def shaped(self) -> bool:
        """Whether any link has a rate."""
        return any(link.rate_bps is not None for link in self.links)

    @property
    def impaired(self) -> bool:
        """Whether any link delays, loses or reorders."""
        return any(link.impaired for link in self.links)

    @property
    def uniform(self) -> bool:
        """Whether all links are alike."""
        return len(self.links) == 1

    @property
    def slowest_bps(self) -> int | None:
        """The lowest rate of any path; None: unshaped."""
        rates = [self.path(a, b).rate_bps for a, b in self.pairs]
        return min((rate for rate in rates if rate is not None), default=None)

    @property
    def total_bps(self) -> int:
        """What all links carry together at most; unshaped ones are left out."""
        if self.accounting == "pair":
            return sum(self.path(a, b).rate_bps or 0 for a, b in self.pairs)
        return sum(self.link_of(node).rate_bps or 0 for node in self.nodes)

    def unshaped(self) -> "Network":
        """A network of the same nodes whose links have no limit."""
        return replace(self, link=Link(), node_links=(), pair_links=())

    def change(
        self,
        alter: Callable[[Link], Link],
        nodes: Sequence[int] | None = None,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> "Network":
        """The network with `alter` applied to some links: of all, of these nodes, or of these ordered pairs.

        With accounting "pair", a node's links are those of the pairs that it sends to.
        """
        if nodes is None and pairs is None:
            return replace(
                self,
                link=alter(self.link),
                node_links=tuple((index, alter(link)) for index, link in self.node_links),
                pair_links=tuple((first, second, alter(link)) for first, second, link in self.pair_links),
            )
        if self.accounting == "pair":
            chosen = {(a, b.index) for a in nodes or () for b in self.peers(self.nodes[a])} | set(pairs or ())
            between = self._between | {(a, b): alter(self.path(self.nodes[a], self.nodes[b])) for a, b in chosen}
            return replace(self, pair_links=tuple((a, b, between[a, b]) for a, b in sorted(between)))
        own = self._own | {index: alter(self._own.get(index, self.link)) for index in nodes or ()}
        return replace(self, node_links=tuple((index, own[index]) for index in sorted(own)))


def star(n: int, link: Link, accounting: Accounting) -> Network:
    """`n` nodes n0, n1 … at 10.77.0.1, 10.77.0.2 … around one switch."""
    if not 1 <= n <= MAX_NODES:
        raise UsageError(f"{n} nodes were asked for; allowed are 1 to {MAX_NODES}.")
    nodes = tuple(Node(index=k, name=f"n{k}", address=f"10.77.0.{k + 1}") for k in range(n))
    return Network(nodes=nodes, link=link, accounting=accounting)


def goodput_bps(rate_bps: float, mtu: int = 1500, framing: Framing = "layer2") -> float:
    """The payload in bit/s that one TCP stream carries when full segments fill `rate_bps`.

    Each packet of MTU + 14 bytes in layer 2 (MTU + 38 on an Ethernet wire, IEEE 802.3) holds MTU - 52 bytes of
    payload: IPv4 (RFC 791) 20, TCP (RFC 9293) 20, timestamps (RFC 7323) 12. At MTU 1500 that is 1448/1514 = 95.6 %
    (1448/1538 = 94.15 %).
    """
    return rate_bps * (mtu - TCP_IP_HEADER_BYTES) / (mtu + FRAMING_BYTES[framing])


def ack_bytes(framing: Framing = "layer2") -> int:
    """A pure acknowledgement as a rate counts it."""
    return TCP_IP_HEADER_BYTES + FRAMING_BYTES[framing]
