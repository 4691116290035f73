"""Bytes on the wire, per node and direction, cheap enough to read at every training step.

Interface counters count a super-packet's headers once; a qdisc's own 64-bit counters (TCA_STATS2) count
every segment's, as a real wire would carry them. What a node sends is counted by the root qdisc of its
eth0, what it receives by that of its port on the switch.
"""

import socket
from dataclasses import dataclass, fields
from typing import Any

from emulation.netlink import TcSocket
from emulation.syscalls import in_netns

__all__ = ["WireBytes", "WireCounter"]


@dataclass(frozen=True, kw_only=True)
class WireBytes:
    """Counted since the present shapers were put in place; None throughout where nothing is counted (host
    nodes)."""

    tx_bytes: int | None
    """Sent, layer 2: every packet's payload and headers from Ethernet up."""
    rx_bytes: int | None
    """Received, likewise."""
    tx_packets: int | None
    """On the wire, after segmentation."""
    rx_packets: int | None
    drops: int | None
    """Packets that found a full queue, both directions (a dropped super-packet is one)."""
    tx_drops: int | None
    """... of those, at the node's own interface."""
    backlog_bytes: int | None
    """Waiting in the queues now, both directions."""
    interface_tx_packets: int | None
    """The node's interface's own count, a super-packet as one: the second source."""
    interface_tx_bytes: int | None
    """Likewise, with one header for each."""


class WireCounter:
    """One node's counters, from any process of the world.

    `description` is what `backend.counter(node)` gave (JSON-able). Opening enters the node's and the
    switch's namespaces for a moment; reading does not. The root qdisc is looked up at each read, so
    counting survives re-shaping; but a new shaper starts at zero, so read before and after on one side of
    it.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        self._ends: list[tuple[TcSocket, int]] = []
        for end in ("tx", "rx") if description["kind"] == "netns" else ():
            netns, device = description[end]["netns"], description[end]["device"]
            with in_netns(netns):
                self._ends.append((TcSocket(), socket.if_nametoindex(device)))

    def read(self) -> WireBytes:
        """The counters now; tens of microseconds."""
        if not self._ends:
            return WireBytes(**dict.fromkeys((field.name for field in fields(WireBytes)), None))
        tx, rx = (sock.root_qdisc(ifindex) for sock, ifindex in self._ends)
        packets, sent = self._ends[0][0].interface_sent(self._ends[0][1])
        return WireBytes(
            tx_bytes=tx["bytes"],
            rx_bytes=rx["bytes"],
            tx_packets=tx["packets"],
            rx_packets=rx["packets"],
            drops=tx["drops"] + rx["drops"],
            tx_drops=tx["drops"],
            backlog_bytes=tx["backlog_bytes"] + rx["backlog_bytes"],
            interface_tx_packets=packets,
            interface_tx_bytes=sent,
        )

    def close(self) -> None:
        """Close the sockets; a second time does nothing."""
        for sock, _ in self._ends:
            sock.close()

    def __enter__(self) -> "WireCounter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
