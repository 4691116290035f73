"""What happens to a network while it lives, as pure data: changes of links, faults, and when.

Times are seconds after time zero, which the player fixes (emulation/player.py). Nothing here has a side effect.
"""

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NotRequired, TypedDict, get_args

from emulation.errors import UsageError
from emulation.spec.network import Link, LinkSettings, Network
from emulation.spec.settings import LINK_FIELDS, alter, settings_text, with_implied
from emulation.spec.units import format_duration, format_rate

__all__ = ["MAX_EVENTS", "Change", "EventFacts", "Fault", "FaultKind", "Schedule"]

FaultKind = Literal["down", "up", "partition", "heal", "freeze", "thaw", "kill", "restart"]
"""down, up: a node's link. partition, heal: who reaches whom. freeze, thaw, kill, restart: a node's programs."""


class EventFacts(TypedDict):
    """An event as it is written down."""

    at_seconds: float
    """When it was asked for, after time zero."""
    applied_seconds: NotRequired[float]
    """When the kernel had it; of events that have happened."""
    what: str
    """For people."""
    settings: NotRequired[LinkSettings]
    """Fields of `Link` and their new values."""
    fault: NotRequired[FaultKind]
    nodes: NotRequired[list[int]]
    pairs: NotRequired[list[list[int]]]
    groups: NotRequired[list[list[int]]]
    repeat_seconds: NotRequired[float]


MAX_EVENTS = 1_000_000
LARGEST_SECONDS = 10**8
SHORTEST_REPEAT_SECONDS = 0.001
CHECKED_WHOLE = 1000
QUICK_SHARE = 0.02
"""Of what a step carries: more must not be in a token bucket."""
QUICK_TOTAL_BPS, QUICK_NODES = 800_000_000, 16
"""What the delay line's relay passes beside trainers on two cores, all links together."""
_RATES = frozenset({"rate_bps", "rate_down_bps"})


def _check_time(seconds: float) -> None:
    if not 0 <= seconds <= LARGEST_SECONDS:
        raise UsageError(f"an event at {seconds:g} s was given; allowed are 0 s to {LARGEST_SECONDS} s.")


def _check_nodes(nodes: tuple[int, ...], network: Network) -> None:
    for index in nodes:
        if not 0 <= index < len(network.nodes):
            raise UsageError(f"node {index} is not there; the nodes are 0 to {len(network.nodes) - 1}.")


def _listed(indexes: tuple[int, ...]) -> str:
    return ("node " if len(indexes) == 1 else "nodes ") + ", ".join(map(str, indexes))


@dataclass(frozen=True, kw_only=True)
class Change:
    """New settings of some links."""

    at_seconds: float
    nodes: tuple[int, ...] | None = None
    """Whose links; with `pairs` None too: all links."""
    pairs: tuple[tuple[int, int], ...] | None = None
    """Ordered pairs (from, to), with accounting "pair" only."""
    settings: LinkSettings = field(hash=False)
    """Fields of `Link` and their new values; the others stay."""

    def __post_init__(self) -> None:
        _check_time(self.at_seconds)
        if not self.settings:
            raise UsageError('a change without a setting was given; name one, for example bw = "10mbit".')
        for name in self.settings:
            if name not in LINK_FIELDS:
                raise UsageError(f"a link has no {name!r}; it has {', '.join(LINK_FIELDS)}.")
        if self.nodes == () or self.pairs == ():
            raise UsageError(
                "a change of no link was given; name at least one node or pair, or leave both out for all."
            )
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def apply(self, network: Network) -> Network:
        """The network after it. Raises `UsageError` where a link cannot be so."""
        return network.change(lambda link: alter(link, self.settings), self.nodes, self.pairs)

    def check(self, network: Network) -> None:
        """Raise `UsageError` if the network has no such links."""
        _check_nodes(self.nodes or (), network)
        if self.pairs and network.accounting != "pair":
            raise UsageError("pairs were given with accounting 'nic', where a link is a node's; give nodes instead.")
        for first, second in self.pairs or ():
            _check_nodes((first, second), network)
            if first == second:
                raise UsageError(f"a pair of node {first} with itself was given; a pair is two nodes.")
        if "rate_down_bps" in self.settings and network.accounting == "pair":
            raise UsageError(
                "a rate down was given with accounting 'pair', where a pair's two directions are two pairs; "
                "give the rate up only, or type accounting nic."
            )

    @property
    def what(self) -> str:
        """For people: "nodes 0, 1: bw 10mbit"."""
        whose = [_listed(self.nodes)] if self.nodes else []
        whose += [" ".join(f"{first}->{second}" for first, second in self.pairs)] if self.pairs else []
        return f"{', '.join(whose) or 'all links'}: {settings_text(self.settings)}"

    def describe(self) -> EventFacts:
        """JSON-able."""
        told: EventFacts = {"at_seconds": self.at_seconds, "what": self.what, "settings": self.settings.copy()}
        if self.nodes is not None:
            told["nodes"] = list(self.nodes)
        if self.pairs is not None:
            told["pairs"] = [list(pair) for pair in self.pairs]
        return told


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that breaks, or is mended."""

    at_seconds: float
    kind: FaultKind
    nodes: tuple[int, ...] = ()
    """Whose link or programs; none for partition and heal."""
    groups: tuple[tuple[int, ...], ...] = ()
    """partition: nodes that still reach each other; every node is in exactly one group."""

    def __post_init__(self) -> None:
        _check_time(self.at_seconds)
        kinds = get_args(FaultKind)
        if self.kind not in kinds:
            raise UsageError(f"fault {self.kind!r} is unknown; type one of {', '.join(kinds)}.")
        if self.kind in ("partition", "heal") and self.nodes:
            raise UsageError(f"{self.kind} concerns all nodes; leave nodes out.")
        if self.kind not in ("partition", "heal") and not self.nodes:
            raise UsageError(f"{self.kind} names no node; give for example nodes = [0].")
        if self.kind != "partition" and self.groups:
            raise UsageError(f"groups were given with {self.kind}; only partition has groups.")
        if self.kind == "partition" and len([group for group in self.groups if group]) < 2:
            raise UsageError(
                "a partition needs at least two groups, none empty; give for example groups = [[0, 1], [2, 3]]."
            )

    def check(self, network: Network) -> None:
        """Raise `UsageError` if the network has no such nodes."""
        named = (*self.nodes, *itertools.chain(*self.groups))
        _check_nodes(named, network)
        for node in network.nodes if self.kind == "partition" else ():
            if named.count(node.index) != 1:
                raise UsageError(
                    f"node {node.index} is in {named.count(node.index)} groups of a partition; "
                    "every node must be in exactly one."
                )

    @property
    def what(self) -> str:
        """For people: "node 1: kill"."""
        if self.kind == "partition":
            return f"partition {' | '.join(', '.join(map(str, group)) for group in self.groups)}"
        return f"{_listed(self.nodes)}: {self.kind}" if self.nodes else self.kind

    def describe(self) -> EventFacts:
        """JSON-able."""
        told: EventFacts = {"at_seconds": self.at_seconds, "what": self.what, "fault": self.kind}
        if self.nodes:
            told["nodes"] = list(self.nodes)
        if self.groups:
            told["groups"] = [list(group) for group in self.groups]
        return told


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Events in the order of their times, and schedules that play beside them."""

    events: tuple[Change | Fault, ...] = ()
    repeat_seconds: float | None = None
    """`events` begin again after so long, without end; None: they happen once."""
    traces: tuple["Schedule", ...] = ()
    """Each with its own repetition. Of events at the same time, own ones come first, then each trace's in order."""

    def __post_init__(self) -> None:
        for earlier, later in itertools.pairwise(self.events):
            if later.at_seconds < earlier.at_seconds:
                raise UsageError(
                    f"an event at {later.at_seconds:g} s comes after one at {earlier.at_seconds:g} s; sort them."
                )
        if len(self) > MAX_EVENTS:
            raise UsageError(f"a schedule of {len(self)} events was given; allowed are at most {MAX_EVENTS}.")
        if self.repeat_seconds is None:
            return
        if not SHORTEST_REPEAT_SECONDS <= self.repeat_seconds <= LARGEST_SECONDS:
            raise UsageError(
                f"a repetition every {self.repeat_seconds:g} s was given; "
                f"allowed are {SHORTEST_REPEAT_SECONDS} s to {LARGEST_SECONDS} s."
            )
        if self.events and self.events[-1].at_seconds >= self.repeat_seconds:
            raise UsageError(
                f"an event at {self.events[-1].at_seconds:g} s does not fit a repetition every "
                f"{self.repeat_seconds:g} s; events must be earlier than its end."
            )

    def __len__(self) -> int:
        """Events of one round."""
        return len(self.events) + sum(len(trace) for trace in self.traces)

    def events_until(self, seconds: float = math.inf) -> Iterator[Change | Fault]:
        """Every event earlier than `seconds`, repetitions unrolled one by one; without end where there is none."""
        parts = [self._own(seconds), *(trace.events_until(seconds) for trace in self.traces)]
        return heapq.merge(*parts, key=_time)

    def _own(self, seconds: float) -> Iterator[Change | Fault]:
        rounds = itertools.count() if self.repeat_seconds is not None and self.events else (0,)
        for number in rounds:
            for event in self.events:
                at = round(event.at_seconds + number * (self.repeat_seconds or 0.0), 9)
                if at >= seconds:
                    return
                yield replace(event, at_seconds=at) if number else event

    def kinds(self) -> frozenset[str]:
        """Of all faults."""
        own = {event.kind for event in self.events if isinstance(event, Fault)}
        return frozenset(own.union(*(trace.kinds() for trace in self.traces)))

    def check(self, network: Network) -> None:
        """Raise `UsageError` unless every event can happen to `network`, in this order.

        Repetitions are tried twice over. Of a part with more than 1000 events, the smallest and the largest value of
        each field and the first two events of each kind are tried.
        """
        start = network
        for event in (*self._round(), *(self._round() if self._repeats() else ())):
            try:
                event.check(network)
                if isinstance(event, Change):
                    network, before = event.apply(network), network
                    _check_same_kind(before, network)
            except UsageError as error:
                raise UsageError(f"at {format_duration(event.at_seconds)}: {error}") from None
        self._check_relay(start)

    def _check_relay(self, network: Network) -> None:
        """Rates that change quickly are a relay's, which passes each packet by itself."""
        if not self.quick():
            return
        total = self.highest(network).total_bps
        if len(network.nodes) > QUICK_NODES or total > QUICK_TOTAL_BPS:
            raise UsageError(
                f"rates change too quickly for {len(network.nodes)} nodes that send up to {format_rate(total)} "
                f"together: {QUICK_NODES} nodes and {format_rate(QUICK_TOTAL_BPS)} are the most where a step lasts "
                "less than 0.2 s or carries less than 3 Mbit; take fewer nodes, lower rates, or longer steps."
            )

    def _repeats(self) -> bool:
        return self.repeat_seconds is not None or any(trace._repeats() for trace in self.traces)

    def _round(self) -> Iterator[Change | Fault]:
        own = self.events if len(self.events) <= CHECKED_WHOLE else tuple(_samples(self.events))
        return heapq.merge(own, *(trace._round() for trace in self.traces), key=_time)

    def highest(self, network: Network) -> Network:
        """A network whose links have the highest rates that they ever have while this plays."""
        states = [network]
        for event in (*self._round(), *(self._round() if self._repeats() else ())):
            if isinstance(event, Change):
                network = event.apply(network)
                begun = event.at_seconds > 0 or len(states) > 1
                states = [*states, network] if begun else [network]  # what was before time zero is never met
        return _highest(states)

    def quick(self) -> bool:
        """Whether rates change too quickly, or become too low, for a token bucket of the kernel's to be within 2 %.

        A bucket is full again after a change (tbf), or owes what a packet took at the rate before (htb).
        """
        found = any(trace.quick() for trace in self.traces)
        rates: dict[Any, list[tuple[float, int]]] = defaultdict(list)
        for event in self.events:
            if isinstance(event, Change) and _RATES & event.settings.keys():
                ends = [event.settings["rate_bps"]] if "rate_bps" in event.settings else []
                ends += [event.settings["rate_down_bps"]] if "rate_down_bps" in event.settings else []
                rates[event.nodes, event.pairs].append((event.at_seconds, min(rate or 0 for rate in ends)))
        for steps in rates.values():
            ends = [at for at, _ in steps[1:]]
            ends += [steps[0][0] + self.repeat_seconds] if self.repeat_seconds is not None else [math.inf]
            lengths = [(end - at, rate) for (at, rate), end in zip(steps, ends, strict=True) if end > at]
            found = found or any(_bucket_bits(rate) > QUICK_SHARE * seconds * rate for seconds, rate in lengths)
        return found

    def describe(self) -> list[EventFacts]:
        """JSON-able: every event of one round, with its repetition."""
        own = [event.describe() for event in self.events]
        if self.repeat_seconds is not None:
            for event in own:
                event["repeat_seconds"] = self.repeat_seconds
        return own + [event for trace in self.traces for event in trace.describe()]


def _bucket_bits(rate_bps: int) -> float:
    """What a token bucket holds (emulation.shaping.sizes), and so may pass too much or too little at a change."""
    return max(60_000.0, min(2**20, rate_bps * 0.0035), rate_bps * 0.001)


def _highest(states: list[Network]) -> Network:
    """The last of them, each link with the highest rates that it has in any."""
    first = states[0]

    def most(links: list[Link]) -> Link:
        up = [link.rate_bps for link in links if link.rate_bps is not None]
        down = [link.down_bps for link in links if link.down_bps is not None]
        return replace(links[-1], rate_bps=max(up, default=None), rate_down_bps=max(down, default=None))

    if first.accounting == "pair":
        between = [(a.index, b.index, most([state.path(a, b) for state in states])) for a, b in first.pairs]
        return replace(states[-1], pair_links=tuple(between))
    own = [(node.index, most([state.link_of(node) for state in states])) for node in first.nodes]
    return replace(states[-1], node_links=tuple(own))


def _check_same_kind(before: Network, after: Network) -> None:
    """A link with a rate has another queue in the kernel than one without; replacing it would start counters anew."""
    if _without_rate(before) != _without_rate(after):
        raise UsageError(
            "a link without a rate cannot be given one while it is used, nor lose it; "
            "give every link a rate from the beginning, for example 10gbit."
        )


def _without_rate(network: Network) -> list[bool]:
    if network.accounting == "pair":
        return [not network.shaped]
    return [network.link_of(node).rate_bps is None for node in network.nodes]


def _time(event: Change | Fault) -> float:
    return event.at_seconds


def _samples(events: tuple[Change | Fault, ...]) -> Iterator[Change | Fault]:
    """Faults, the first two changes of each kind, and for each field the smallest and largest value.

    A change's kind is which links it concerns, which fields it sets, and which of them to nothing.
    """
    seen: dict[Any, int] = {}
    extremes: dict[Any, Change] = {}
    keep: set[int] = set()
    for event in events:
        if isinstance(event, Fault):
            keep.add(id(event))
            continue
        settings = with_implied(event.settings)
        whose = (event.nodes, event.pairs)
        kind = (whose, tuple((name, bool(value)) for name, value in settings.items()))
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= 2:
            keep.add(id(event))
        for name, value in settings.items():
            if isinstance(value, (int, float)):
                for sign in (-1, 1):
                    known = extremes.get((whose, name, sign))
                    if known is None or sign * value > sign * dict[str, Any](known.settings).get(name, 0):
                        extremes[whose, name, sign] = event
    keep.update(id(event) for event in extremes.values())
    return (event for event in events if id(event) in keep)
