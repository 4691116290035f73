"""Bytes from every rank to every other, directly, and an account of each.

`Sockets` is one TCP connection per pair of ranks and no rendezvous: a message leaves as soon as it is
posted and waits in the receiver's socket buffer. (gloo first lets the receiver's "ready" message queue
behind its own bulk data, which nearly doubles an exchange on a slow link; see benchmarks/exchange.py.)
`Distributed` does the same through `torch.distributed`, for NCCL between real machines.

A message is a 24-byte head, the payload, and ballast: random bytes that fill it up to the size that the
emulated node would send. Ballast is sent from a memory file without copying and dropped by the receiving
kernel without copying, so that two cores can carry full-size exchanges of several nodes.

Synchronisation: every rank must post the same exchanges in the same order; the head's running number and
sizes are checked at the other end.
"""

import errno
import os
import selectors
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor

from testbed.errors import PeerLost

__all__ = ["HEAD_BYTES", "Sockets", "Ticket", "Transport"]

_HEAD = struct.Struct("<IIQQ")  # magic, running number, payload bytes, ballast bytes
HEAD_BYTES = _HEAD.size
_MAGIC = 0x51_0B_11_4C
_BALLAST_FILE_BYTES = 8 << 20
_CONNECT_SECONDS = 60.0
_INTRODUCTION_SECONDS = 2.0


class Ticket(Protocol):
    """An exchange under way."""

    def wait(self) -> list[Tensor | None]:
        """Messages by sender's rank (None for oneself), once all are here and ours have left."""
        ...


class Transport(Protocol):
    """All-to-all of messages; `sent` counts the bytes handed over, by channel."""

    rank: int
    world: int
    sent: Counter[str]

    def exchange(self, outgoing: list[Tensor | None], channels: dict[str, int], *, ballast: int = 0) -> Ticket:
        """Post one message (uint8, all of one size) to every other rank. `channels` splits its size."""
        ...

    def close(self) -> None:
        """Leave the others."""
        ...


class Sockets:
    """Plain TCP between all pairs of ranks."""

    def __init__(self, rank: int, peers: dict[int, socket.socket]) -> None:
        self.rank = rank
        self.world = len(peers) + 1
        self.peers = peers
        self.sent: Counter[str] = Counter()
        self._number = 0
        self._ballast = _ballast_file()
        for connection in peers.values():
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def connect(
        cls, rank: int, addresses: list[tuple[str, int]], *, listener: socket.socket | None = None
    ) -> "Sockets":
        """Meet the other ranks: each listens at its own address only, lower ranks are called by higher ones.

        A `listener` that already listens at the own address is used, and closed, instead of a new one.
        """
        with (
            listener or socket.create_server(addresses[rank], backlog=len(addresses)) as listener,
            ExitStack() as stack,
        ):
            peers: dict[int, socket.socket] = {}
            for other in range(rank):
                peers[other] = stack.enter_context(_call(addresses[other], addresses[rank][0]))
                peers[other].sendall(struct.pack("<II", _MAGIC, rank))
            listener.settimeout(_CONNECT_SECONDS)
            while len(peers) < len(addresses) - 1:
                connection, _ = listener.accept()
                other = _introduced(connection)
                if other is None or not rank < other < len(addresses) or other in peers:
                    connection.close()  # not one of ours: a port scan, a stray client
                    continue
                peers[other] = stack.enter_context(connection)
            stack.pop_all()
        return cls(rank, dict(sorted(peers.items())))

    def exchange(self, outgoing: list[Tensor | None], channels: dict[str, int], *, ballast: int = 0) -> "_SocketTicket":
        others = [message for message in outgoing if message is not None]
        size = others[0].numel() if others else 0
        assert all(message.numel() == size for message in others), "messages of one exchange have one size"
        assert not others or sum(channels.values()) == size, (channels, size)
        for channel, nbytes in channels.items():
            self.sent[channel] += nbytes * len(self.peers)
        self.sent["ballast"] += ballast * len(self.peers)
        self.sent["other"] += HEAD_BYTES * len(self.peers)
        self._number += 1
        head = _HEAD.pack(_MAGIC, self._number, size, ballast)
        flows = {}
        for other, connection in self.peers.items():
            message = outgoing[other]
            assert message is not None
            body = message.cpu().numpy().tobytes()
            flows[other] = _Flow(self.rank, other, connection, head + body, ballast, self._ballast, head)
        return _SocketTicket(self.rank, self.world, flows)

    def close(self) -> None:
        """End every connection; the peers see it as a rank that has gone. A second time does nothing."""
        for connection in self.peers.values():
            connection.close()
        if self._ballast >= 0:
            os.close(self._ballast)
            self._ballast = -1


class _Flow:
    """One connection's share of an exchange: what still has to leave and to come."""

    def __init__(
        self,
        rank: int,
        other: int,
        connection: socket.socket,
        outgoing: bytes,
        ballast: int,
        ballast_file: int,
        expected_head: bytes,
    ) -> None:
        self.rank, self.other, self.connection = rank, other, connection
        self._out = memoryview(outgoing)
        self._ballast_out = ballast
        self._ballast_in = ballast
        self._ballast_file = ballast_file
        self._expected_head = expected_head
        self._in = bytearray(len(outgoing))
        self._filled = 0

    @property
    def sending(self) -> bool:
        return bool(self._out) or self._ballast_out > 0

    @property
    def receiving(self) -> bool:
        return self._filled < len(self._in) or self._ballast_in > 0

    @property
    def message(self) -> Tensor:
        if len(self._in) == HEAD_BYTES:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._in, dtype=torch.uint8, offset=HEAD_BYTES)

    def send(self) -> None:
        """Hand over as much as the socket takes."""
        try:
            while self._out:
                self._out = self._out[self.connection.send(self._out) :]
            while self._ballast_out:
                size = min(self._ballast_out, _BALLAST_FILE_BYTES)
                self._ballast_out -= os.sendfile(self.connection.fileno(), self._ballast_file, 0, size)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(error) from error

    def receive(self) -> None:
        """Take as much as is there."""
        try:
            while self._filled < len(self._in):
                count = self.connection.recv_into(memoryview(self._in)[self._filled :])
                self._arrived(count)
                self._filled += count
                if self._filled >= HEAD_BYTES:
                    self._check_head()
            while self._ballast_in:
                # MSG_TRUNC on a TCP socket discards in the kernel what would have been copied (tcp(7)).
                count = self.connection.recv_into(_SCRATCH, min(self._ballast_in, len(_SCRATCH)), socket.MSG_TRUNC)
                self._arrived(count)
                self._ballast_in -= count
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(error) from error

    def _check_head(self) -> None:
        if self._in[:HEAD_BYTES] != self._expected_head:
            magic, *found = _HEAD.unpack(self._in[:HEAD_BYTES])
            _, *expected = _HEAD.unpack(self._expected_head)
            raise AssertionError(
                f"rank {self.rank} expected (number, payload, ballast) {expected} from rank {self.other} "
                f"and got {found} (magic {magic:#x}): the ranks are not in step"
            )

    def _arrived(self, count: int) -> None:
        if count == 0:
            raise self._lost(OSError(errno.ECONNRESET, "connection closed"))

    def _lost(self, error: OSError) -> PeerLost:
        return PeerLost(f"rank {self.rank} lost its connection to rank {self.other}: {error.strerror}")


_SCRATCH = bytearray(1 << 20)


class _SocketTicket:
    def __init__(self, rank: int, world: int, flows: dict[int, _Flow]) -> None:
        self._rank, self._world, self._flows = rank, world, flows
        for flow in flows.values():
            flow.send()

    def wait(self) -> list[Tensor | None]:
        with selectors.DefaultSelector() as selector:
            for flow in self._flows.values():
                self._watch(selector, flow)
            while selector.get_map():
                for key, events in selector.select():
                    flow: _Flow = key.data
                    if events & selectors.EVENT_WRITE:
                        flow.send()
                    if events & selectors.EVENT_READ:
                        flow.receive()
                    self._watch(selector, flow, known=True)
        return [self._flows[other].message if other != self._rank else None for other in range(self._world)]

    @staticmethod
    def _watch(selector: selectors.BaseSelector, flow: _Flow, *, known: bool = False) -> None:
        events = (selectors.EVENT_WRITE if flow.sending else 0) | (selectors.EVENT_READ if flow.receiving else 0)
        if known and events == selector.get_key(flow.connection).events:
            return
        if known:
            selector.unregister(flow.connection)
        if events:
            selector.register(flow.connection, events, flow)


def _ballast_file() -> int:
    descriptor = os.memfd_create("ballast")
    os.write(descriptor, os.urandom(_BALLAST_FILE_BYTES))
    return descriptor


def _call(address: tuple[str, int], own: str) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return socket.create_connection(address, timeout=_CONNECT_SECONDS, source_address=(own, 0))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _introduced(connection: socket.socket) -> int | None:
    """The rank that called, or None if what called does not speak as a rank does."""
    connection.settimeout(_INTRODUCTION_SECONDS)
    data = b""
    try:
        while len(data) < 8 and (piece := connection.recv(8 - len(data))):
            data += piece
    except OSError:
        return None
    connection.settimeout(None)
    if len(data) < 8:
        return None
    magic, rank = struct.unpack("<II", data)
    return rank if magic == _MAGIC else None
