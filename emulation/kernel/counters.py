"""Bytes on the wire, per node and direction, cheap enough to read at every training step.

Interface counters count a super-packet's headers once; a qdisc's own 64-bit counters (TCA_STATS2) count
every segment's, as a real wire would carry them. What a node sends is counted by the root qdisc of its
eth0, what it receives by that of its port on the switch.
"""

import json
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, fields

from emulation.errors import EmulationError
from emulation.kernel.commands import At
from emulation.kernel.facts import CounterPlace
from emulation.kernel.netlink import TcSocket
from emulation.kernel.syscalls import at

__all__ = ["CounterServer", "WireBytes", "WireCounter", "open_end"]


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
    """The interface's own count of bytes; a super-packet has one header."""


End = tuple[TcSocket, int]
"""Where a device's counters are read: a socket of its namespace, and its index there."""


def open_end(device: str) -> End:
    """Open a counter of a device in the present namespace."""
    return TcSocket(), socket.if_nametoindex(device)


def open_ends(description: CounterPlace, at: At = at) -> list[End]:
    """What a node sends and receives."""
    return [at(description[end]["netns"], open_end, description[end]["device"]) for end in ("tx", "rx")]


class WireCounter:
    """One node's counters, from any process of the world, or of a container.

    `description` is what `backend.counter(node)` gave (JSON-able). Opening enters the node's and the
    switch's namespaces for a moment, or asks one who may (`CounterServer`); reading does not. The root qdisc is looked
    up at each read, so counting survives re-shaping; but a new shaper starts at zero, so read before and after on one
    side of it.
    """

    def __init__(self, description: CounterPlace) -> None:
        self._ends: list[End] = []
        if description["kind"] == "netns":
            self._ends = open_ends(description)
        elif description["kind"] == "passed":
            self._ends = _ask(description)

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


class CounterServer:
    """Opens nodes' counters for processes that may not enter namespaces, and hands them over (SCM_RIGHTS, unix(7)).

    Reading them needs no privilege, and costs those processes what it costs us.
    """

    def __init__(self, path: str, descriptions: list[CounterPlace], at: At = at) -> None:
        self._descriptions, self._at = descriptions, at
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(path)
        os.chmod(path, 0o600)
        self._socket.listen(len(descriptions))
        threading.Thread(target=self._serve, name="counters", daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._socket.accept()
                wrong = suppress(OSError, ValueError, LookupError, EmulationError)  # who asks for nothing gets nothing
                with client, wrong:
                    client.settimeout(1.0)
                    self._hand_over(client, client.recv(2))

    def _hand_over(self, client: socket.socket, asked: bytes) -> None:
        if len(asked) != 2:
            return
        ends = open_ends(self._descriptions[int.from_bytes(asked, "big")], self._at)
        try:
            indexes = json.dumps([index for _, index in ends]).encode()
            socket.send_fds(client, [indexes], [end.fileno() for end, _ in ends])
        finally:
            for end, _ in ends:
                end.close()

    def close(self) -> None:
        """No more are handed over."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _ask(description: CounterPlace) -> list[End]:
    """A node's counters from a `CounterServer`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5.0)
        sock.connect(description["socket"])
        sock.sendall(description["index"].to_bytes(2, "big"))
        said, descriptors, _, _ = socket.recv_fds(sock, 1 << 10, 2)
    return [(TcSocket(each), index) for each, index in zip(descriptors, json.loads(said), strict=True)]
