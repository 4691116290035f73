"""Bytes from every rank to every other, directly, and an account of each.

`Sockets` is one TCP connection per pair of ranks and no rendezvous: a message leaves as soon as it is
posted and waits in the receiver's socket buffer. (gloo first lets the receiver's "ready" message queue
behind its own bulk data, which nearly doubles an exchange on a slow link; see benchmarks/exchange.py.)
`Distributed` does the same through `torch.distributed`, for NCCL between real machines.

A message is a 24-byte head, the payload, and ballast: random bytes that fill it up to the size that the
emulated node would send. Ballast is sent from a memory file without copying and dropped by the receiving
kernel without copying, so that two cores can carry full-size exchanges of several nodes.

Several exchanges may be under way at once; `testbed.parallel.io_loop` moves their bytes.

Synchronisation: every rank must post the same exchanges in the same order; the head's running number and
sizes are checked at the other end.
"""

import errno
import os
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor

from testbed.errors import PeerLost
from testbed.parallel.greeting import Secret, accept, call, listen
from testbed.parallel.io_loop import Pump, PumpThread

__all__ = ["HEAD_BYTES", "Sockets", "Ticket", "Transport"]

_HEAD = struct.Struct("<IIQQ")  # magic, running number, payload bytes, ballast bytes
HEAD_BYTES = _HEAD.size
_MAGIC = 0x51_0B_11_4C
_BALLAST_FILE_BYTES = 8 << 20


class Ticket(Protocol):
    """An exchange under way."""

    seconds: float
    """From posting to the last byte; what of it was not hidden behind computation is the time spent in `wait`."""

    def wait(self) -> list[Tensor | None]:
        """Messages by sender's rank (None where none was due), once all are here and ours have left."""
        ...


class Transport(Protocol):
    """Messages between ranks; `sent` counts the bytes handed over, by channel."""

    rank: int
    world: int

    @property
    def sent(self) -> Counter[str]: ...

    def exchange(
        self,
        outgoing: list[Tensor | None],
        channels: dict[str, int],
        *,
        incoming: list[int | None] | None = None,
        ballast: int = 0,
    ) -> Ticket:
        """Post a message (uint8) to every rank for which there is one.

        `channels` splits the bytes of all of them together. `incoming` are the sizes that are due from each rank,
        None for no message; left out, they are the sizes of our own. `ballast` bytes ride along with every message.
        """
        ...

    head_bytes: int
    """What travels before each message that is posted, counted as `other`."""
    lanes: bool
    """Whether there is a `lane()`: a second transport to the same ranks, for traffic that must not queue behind
    exchanges."""

    def overlap(self, wanted: bool) -> None:
        """Whether bytes move while the caller computes."""
        ...

    def close(self) -> None:
        """Leave the others."""
        ...


class Sockets:
    """Plain TCP between all pairs of ranks."""

    head_bytes = HEAD_BYTES
    lanes = True

    def __init__(self, rank: int, peers: dict[int, socket.socket], secret: Secret | None = None) -> None:
        self.rank = rank
        self.world = len(peers) + 1
        self.peers = peers
        self._secret = secret
        self._sent: Counter[str] = Counter()
        self._number = 0
        self._lane: Sockets | None = None
        self.pump: Pump = Pump()
        self._ballast = -1
        for connection in peers.values():
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def connect(
        cls,
        rank: int,
        addresses: list[tuple[str, int]],
        *,
        listener: socket.socket | None = None,
        secret: Secret | None = None,
    ) -> "Sockets":
        """Meet the other ranks: each listens at its own address only, lower ranks are called by higher ones.

        A `listener` that already listens at the own address is used, and closed, instead of a new one. With a `secret`
        both ends of every connection prove that they know it.
        """
        with (
            listener or listen(*addresses[rank][:2], backlog=len(addresses)) as listener,
            ExitStack() as stack,
        ):
            own = addresses[rank][0]
            peers = {
                other: stack.enter_context(call(rank, other, addresses[other], own, secret)) for other in range(rank)
            }
            later = accept(rank, {*range(rank + 1, len(addresses))}, listener, secret)
            peers |= {other: stack.enter_context(later[other]) for other in sorted(later)}
            stack.pop_all()
        return cls(rank, peers, secret)

    def exchange(
        self,
        outgoing: list[Tensor | None],
        channels: dict[str, int],
        *,
        incoming: list[int | None] | None = None,
        ballast: int = 0,
    ) -> "_SocketTicket":
        sizes = [None if message is None else message.numel() for message in outgoing]
        messages = sum(size is not None for size in sizes)
        payload = sum(size or 0 for size in sizes)
        assert sizes[self.rank] is None
        assert sum(channels.values()) == payload, (channels, sizes)
        self._sent.update(channels)
        self._sent["ballast"] += ballast * messages
        self._sent["other"] += HEAD_BYTES * messages
        self._number += 1
        if ballast and self._ballast < 0:
            self._ballast = _ballast_file()
        ticket = _SocketTicket(self)
        for other, connection in self.peers.items():
            due = (sizes if incoming is None else incoming)[other]
            flow = _Flow(self.rank, other, connection, self._ballast, ballast)
            if (message := outgoing[other]) is not None:
                head = _HEAD.pack(_MAGIC, self._number, message.numel(), ballast)
                flow.carry(head, memoryview(message.cpu().contiguous().numpy()))  # pyrefly: ignore
            if due is not None:
                flow.expect(_HEAD.pack(_MAGIC, self._number, due, ballast), due)
            ticket.flows[other] = flow
        self.pump.take(ticket)
        return ticket

    @property
    def sent(self) -> Counter[str]:
        """Bytes handed over by channel, its lane's too."""
        return self._sent + self._lane.sent if self._lane else Counter(self._sent)

    @property
    def connections(self) -> list[socket.socket]:
        """All of them, its lane's too."""
        return [*self.peers.values(), *(self._lane.connections if self._lane else ())]

    def lane(self) -> "Sockets":
        """Connections of their own to the same ranks, at free ports beside the first ones'. Collective, once."""
        if self._lane is not None:
            return self._lane
        own = next(iter(self.peers.values())).getsockname()[0] if self.peers else "127.0.0.1"
        listener = listen(own, backlog=self.world)
        port = torch.tensor([listener.getsockname()[1]]).view(torch.uint8)
        outgoing = [port if other in self.peers else None for other in range(self.world)]
        ports = self.exchange(outgoing, {"other": 8 * len(self.peers)}).wait()
        addresses = [("", 0)] * self.world
        addresses[self.rank] = listener.getsockname()
        for other, message in enumerate(ports):
            if message is not None:
                addresses[other] = (self.peers[other].getpeername()[0], int(message.view(torch.int64)))
        self._lane = Sockets.connect(self.rank, addresses, listener=listener, secret=self._secret)
        return self._lane

    def overlap(self, wanted: bool) -> None:
        """Whether a thread of its own moves the bytes while the caller computes, or the caller while it waits.

        Without it only as much travels by itself as the kernel's socket buffers hold.
        """
        if wanted != isinstance(self.pump, PumpThread):
            self.pump.close()
            self.pump = PumpThread() if wanted else Pump()

    def close(self) -> None:
        """End every connection; the peers see it as a rank that has gone. A second time does nothing."""
        if self._lane is not None:
            self._lane.close()
        self.pump.close()
        for connection in self.peers.values():
            connection.close()
        if self._ballast >= 0:
            os.close(self._ballast)
            self._ballast = -1


class _Flow:
    """One connection's share of an exchange: what still has to leave and to come."""

    def __init__(self, rank: int, other: int, connection: socket.socket, ballast_file: int, ballast: int) -> None:
        self.rank, self.other, self.connection = rank, other, connection
        self._ballast_file, self._ballast = ballast_file, ballast
        self._out: list[memoryview] = []
        self._ballast_out = self._ballast_in = 0
        self._expected_head = b""
        self._in = bytearray()
        self._filled = 0

    def carry(self, head: bytes, message: memoryview) -> None:
        """What is to leave. It is not copied: the message must stay as it is until it has left."""
        self._out = [part for part in (memoryview(head), message) if len(part)]
        self._ballast_out = self._ballast

    def expect(self, head: bytes, size: int) -> None:
        """What is to come."""
        self._expected_head, self._ballast_in = head, self._ballast
        self._in = bytearray(len(head) + size)

    @property
    def sending(self) -> bool:
        return bool(self._out) or self._ballast_out > 0

    @property
    def receiving(self) -> bool:
        return self._filled < len(self._in) or self._ballast_in > 0

    @property
    def message(self) -> Tensor | None:
        if not self._in:
            return None
        if len(self._in) == HEAD_BYTES:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._in, dtype=torch.uint8, offset=HEAD_BYTES)

    def send(self) -> None:
        """Hand over as much as the socket takes."""
        try:
            while self._out:
                count = self.connection.sendmsg(self._out)
                while self._out and count >= len(self._out[0]):
                    count -= len(self._out.pop(0))
                if count:
                    self._out[0] = self._out[0][count:]
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
    def __init__(self, sockets: Sockets) -> None:
        self.flows: dict[int, _Flow] = {}
        self.seconds = 0.0
        self._pump, self._world = sockets.pump, sockets.world
        self._posted = time.perf_counter()

    def finish(self) -> None:
        """Every byte has moved."""
        self.seconds = time.perf_counter() - self._posted

    def wait(self) -> list[Tensor | None]:
        self._pump.finish(self)
        return [self.flows[other].message if other in self.flows else None for other in range(self._world)]


def _ballast_file() -> int:
    descriptor = os.memfd_create("ballast")
    os.write(descriptor, os.urandom(1 << 20) * (_BALLAST_FILE_BYTES >> 20))
    return descriptor
