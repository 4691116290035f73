"""Which packets wait in which queue of the delay line, and for what; pure data, and the kernel's rules that say so."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from emulation.shaping.netem import Netem
from emulation.shaping.sizes import sizes
from emulation.shaping.waiting import QueueFacts, RateFacts
from emulation.spec.network import FRAMING_BYTES, LARGEST_RATE_BPS, Link, Network

__all__ = ["RelayRate", "Rule", "delay_rules", "relay_rates", "relay_rules", "rule_lines", "with_room"]

_FIRST_RATED_QUEUE = 1000
"""Queues whose packets tell their length; the kernel is asked for that once, as a queue is made."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One queue, and the paths whose packets wait in it."""

    queue: int
    pairs: tuple[tuple[int, int], ...]
    """(from, to), node indexes."""
    link: Link
    """What their packets meet."""
    up: str | None = None
    """The name of the `RelayRate` that their packets pass first; None: the rate is the kernel's."""
    down: str | None = None
    """The one that they pass behind the delay."""

    def settings(self) -> QueueFacts:
        """What the relay is told."""
        bursts = self.link.loss and self.link.loss_burst is not None
        enter, leave = Netem.of(self.link, 1).gilbert_elliott() if bursts else (0.0, 1.0)
        return {
            "queue": self.queue,
            "delay_us": self.link.delay_us,
            "jitter_us": self.link.jitter_us,
            "distribution": self.link.distribution,
            "loss": self.link.loss,
            "enter": enter,
            "leave": leave,
            "reorder": self.link.reorder,
            "up": self.up,
            "down": self.down,
        }


@dataclass(frozen=True, kw_only=True)
class RelayRate:
    """A rate that the relay holds, because it changes too quickly for a token bucket of the kernel's."""

    name: str
    rate_bps: int
    queue_bytes: int
    """What waits before it at most."""
    mtu: int
    framing_bytes: int
    """What it counts of each packet beside its IP part."""

    def settings(self) -> RateFacts:
        """What the relay is told."""
        return {
            "name": self.name,
            "bps": self.rate_bps,
            "queue_bytes": self.queue_bytes,
            "mtu": self.mtu,
            "framing_bytes": self.framing_bytes,
        }


def relay_rates(network: Network, highest: Network) -> list[RelayRate]:
    """Of every link of `network`: a node's up and down, or an ordered pair's. Queues are those of the rates of
    `highest`, so that none shrinks while its link is slow."""

    def rate(name: str, rate_bps: int | None, most_bps: int | None, link: Link, round_trip_us: int) -> None:
        if rate_bps is not None and most_bps is not None:
            queue_bytes = sizes(network, most_bps, link, 1, round_trip_us).queue_bytes
            framing_bytes = FRAMING_BYTES[network.framing]
            found.append(
                RelayRate(
                    name=name,
                    rate_bps=rate_bps,
                    queue_bytes=queue_bytes,
                    mtu=network.mtu,
                    framing_bytes=framing_bytes,
                )
            )

    found: list[RelayRate] = []
    if network.accounting == "pair":
        for a, b in network.pairs:
            link, most = network.path(a, b), highest.path(a, b)
            rate(f"{a.name}->{b.name}", link.rate_bps, most.rate_bps, link, network.round_trip_us(a, b))
        return found
    for node in network.nodes:
        link, most = network.link_of(node), highest.link_of(node)
        round_trip_us = max((network.round_trip_us(node, peer) for peer in network.peers(node)), default=0)
        rate(f"{node.name} up", link.rate_bps, most.rate_bps, link, round_trip_us)
        rate(f"{node.name} down", link.down_bps, most.down_bps, link, round_trip_us)
    return found


def relay_rules(network: Network) -> list[Rule]:
    """A rule for each ordered pair, whose packets pass rates of the relay's."""
    rules = []
    for queue, (a, b) in enumerate(network.pairs, _FIRST_RATED_QUEUE):
        link = network.path(a, b)
        if network.accounting == "pair":
            up, down = f"{a.name}->{b.name}" if link.rate_bps is not None else None, None
        else:
            up = f"{a.name} up" if network.link_of(a).rate_bps is not None else None
            down = f"{b.name} down" if network.link_of(b).down_bps is not None else None
        if up or down or link.impaired:
            pairs = ((a.index, b.index),)
            rules.append(Rule(queue=queue, pairs=pairs, link=replace(link, rate_bps=None), up=up, down=down))
    return rules


def delay_rules(network: Network) -> list[Rule]:
    """A rule per kind of path that delays or loses; one of its own for each that loses in runs."""
    kinds: dict[tuple[Any, ...], tuple[Link, list[tuple[int, int]]]] = {}
    for source, target in network.pairs:
        link = network.path(source, target)
        own: tuple[int, ...] = ()
        if link.loss_burst is not None:  # one path's losses in a row must not be shared out among several
            own = (source.index,) if network.accounting == "nic" else (source.index, target.index)
        what = (link.delay_us, link.jitter_us, link.distribution, link.loss, link.loss_burst, link.reorder, *own)
        kinds.setdefault(what, (link, []))[1].append((source.index, target.index))
    return [
        Rule(queue=queue, pairs=tuple(pairs), link=link)
        for queue, (link, pairs) in enumerate(kinds.values())
        if link.impaired
    ]


def rule_lines(rules: list[Rule], nodes: int) -> list[str]:
    """What iptables-save prints of them: as few as tell the paths apart, for each packet walks through them."""
    pairs = {pair: rule.queue for rule in rules for pair in rule.pairs}
    if len(pairs) == nodes * (nodes - 1) and len(rules) == 1:
        return [f"-A FORWARD -j NFQUEUE --queue-num {rules[0].queue}"]
    by_source: dict[int, dict[int, int]] = defaultdict(dict)
    for (source, target), queue in pairs.items():
        by_source[source][target] = queue
    first, behind = [], []
    for source, queues in sorted(by_source.items()):
        if len(queues) == nodes - 1 and len(set(queues.values())) == 1:
            first.append(f"-A FORWARD -i sw{source} -j NFQUEUE --queue-num {next(iter(queues.values()))}")
        else:
            first.append(f"-A FORWARD -i sw{source} -j from{source:03d}")
            behind += [
                f"-A from{source:03d} -o sw{target} -j NFQUEUE --queue-num {queue}"
                for target, queue in sorted(queues.items())
            ]
    chains = [
        f"-N from{source:03d}"
        for source in sorted(by_source)
        if any(f"-A from{source:03d} " in line for line in behind)
    ]
    return [*chains, *first, *behind]


def with_room(network: Network) -> Network:
    """The same links with a quarter more, so that the rates that the relay holds are what holds packets back."""

    def more(link: Link) -> Link:
        up, down = (rate and min(LARGEST_RATE_BPS, rate * 5 // 4) for rate in (link.rate_bps, link.rate_down_bps))
        return replace(link, rate_bps=up, rate_down_bps=down)

    return network.change(more)
