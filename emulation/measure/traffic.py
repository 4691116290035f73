"""What a program moved over a network: bytes sent and received per node, and sent per ordered pair of nodes.

A node's bytes are its qdiscs' (layer 2, every segment's headers). A pair's are its class's where pairs are shaped;
where access links are, the switch's filter counts the IP bytes of each pair, and a node's bytes are shared out in
their proportion (exact but for the share of headers).
"""

import re
from dataclasses import dataclass
from typing import TypedDict

from emulation.errors import EmulationError
from emulation.kernel.commands import ToolBatch, iptables, run_all
from emulation.kernel.counters import WireBytes, WireCounter
from emulation.nodes.base import Backend
from emulation.nodes.readback import SWITCH
from emulation.spec.network import Node

__all__ = ["Moved", "MovedFacts", "PairBytes", "TrafficCounter"]

_COUNTED = re.compile(r"^\[(\d+):(\d+)\] -A FORWARD -i sw(\d+) -o sw(\d+)", re.MULTILINE)


PairBytes = TypedDict("PairBytes", {"from": str, "to": str, "bytes": int})
"""Sent by one node to another."""


class MovedFacts(TypedDict):
    """As it is written down: by node, and by pair."""

    sent_bytes: dict[str, int]
    received_bytes: dict[str, int]
    pairs: list[PairBytes]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Layer 2 bytes since the start."""

    sent: dict[str, int]
    """By node."""
    received: dict[str, int]
    pairs: dict[tuple[str, str], int]
    """Sent, by (from, to); empty where they could not be told apart."""

    def record(self) -> MovedFacts:
        """JSON-able."""
        pairs: list[PairBytes] = [{"from": a, "to": b, "bytes": count} for (a, b), count in self.pairs.items()]
        return {"sent_bytes": self.sent, "received_bytes": self.received, "pairs": pairs}


class TrafficCounter:
    """Counts from its making on; shapers may change meanwhile, but not be replaced."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._nodes = backend.network.nodes
        self._counters = [WireCounter(backend.counter(node)) for node in self._nodes]
        self._by_filter = backend.network.accounting == "nic" and self._watch()
        self._first = [counter.read() for counter in self._counters]
        self._first_pairs = self._pairs()

    def _watch(self) -> bool:
        """Rules that count and do nothing else; False where this machine has no iptables."""
        pairs = [(a.index, b.index) for a, b in self._backend.network.pairs]
        lines = tuple(f"-A FORWARD -i sw{a} -o sw{b}" for a, b in pairs)
        try:
            run_all([ToolBatch(tool="iptables", netns=SWITCH, lines=lines, table="filter")], self._backend.at)
        except EmulationError:
            return False
        return True

    def _pairs(self) -> dict[tuple[int, int], int]:
        """Bytes by pair, as the class or the filter counts them."""
        if self._backend.network.accounting == "pair":
            found = self._backend.readback()["nodes"]
            counted = {}
            for a, b in self._backend.network.pairs:
                one = found[a.name]["tx"]["classes"].get(f"{b.index + 1:x}")
                if one is not None:
                    counted[a.index, b.index] = one["bytes"]
            return counted
        if not self._by_filter:
            return {}
        said = self._backend.at(SWITCH, iptables, SWITCH, "-save", "-c", "-t", "filter")
        return {(int(a), int(b)): int(count) for _, count, a, b in _COUNTED.findall(said)}

    def read(self) -> Moved:
        """What has moved since the start."""
        now = [counter.read() for counter in self._counters]
        sent = {node.index: _since(a.tx_bytes, b.tx_bytes) for node, a, b in self._each(now)}
        received = {node.index: _since(a.rx_bytes, b.rx_bytes) for node, a, b in self._each(now)}
        pairs = {pair: count - self._first_pairs.get(pair, 0) for pair, count in self._pairs().items()}
        if self._by_filter:
            totals = {
                node.index: sum(count for (a, _), count in pairs.items() if a == node.index) for node in self._nodes
            }
            pairs = {pair: round(count * sent[pair[0]] / max(1, totals[pair[0]])) for pair, count in pairs.items()}
        name = {node.index: node.name for node in self._nodes}
        return Moved(
            sent={name[index]: count for index, count in sent.items()},
            received={name[index]: count for index, count in received.items()},
            pairs={(name[a], name[b]): count for (a, b), count in pairs.items()},
        )

    def _each(self, now: list[WireBytes]) -> list[tuple[Node, WireBytes, WireBytes]]:
        return list(zip(self._nodes, self._first, now, strict=True))

    def close(self) -> None:
        for counter in self._counters:
            counter.close()


def _since(first: int | None, now: int | None) -> int:
    return (now or 0) - (first or 0)
