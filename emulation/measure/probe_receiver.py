"""What arrives at a prober: streams that are counted and thrown away, and single messages that are timed."""

import mmap
import socket
import struct
import time
from dataclasses import dataclass
from typing import TypedDict

__all__ = ["DISCARD_BYTES", "MESSAGE", "Inbox", "MessageArrival", "ProbeAnswer", "Receiver", "arrival"]

DISCARD_BYTES = 1 << 22
MESSAGE = struct.Struct("=QQ")  # bytes that follow, time of sending in nanoseconds


MessageArrival = TypedDict("MessageArrival", {"from": str, "bytes": int, "seconds": float})
"""A message, and the time from its sending to its last byte."""


class ProbeAnswer(TypedDict, total=False):
    """What a prober says to one command."""

    ready: str
    received: dict[str, list[dict[str, float]]]
    """By source: what arrived between one mark and the next."""
    resent_segments: int
    microseconds: list[float | None]
    """Round trips; None: lost."""
    sent: int
    counted: dict[str, dict[str, int]]
    overflow: int
    arrivals: list[MessageArrival]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """What the kernel has counted on an incoming flow at one moment."""

    at_seconds: float
    payload_bytes: int
    """In order, ready for the program."""
    data_segments: int
    """With those that wait for a lost one before them."""
    acks: int
    """Segments sent: this side sends no data, so these are acknowledgements."""


def arrival(sock: socket.socket) -> Arrival:
    """Read an incoming flow's counters (linux/tcp.h, struct tcp_info)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    now = time.monotonic()
    (payload,) = struct.unpack_from("=Q", info, 128)
    (acks,) = struct.unpack_from("=I", info, 136)
    (segments,) = struct.unpack_from("=I", info, 152)
    return Arrival(at_seconds=now, payload_bytes=payload, data_segments=segments, acks=acks)


class Receiver:
    """One incoming flow."""

    def __init__(self, sock: socket.socket, source: str) -> None:
        self.sock, self.source = sock, source
        self.marks: list[Arrival] = []

    def discard(self, waste: mmap.mmap) -> bool:
        """Throw away what has arrived; False when the flow has ended."""
        try:
            return self.sock.recv_into(waste, DISCARD_BYTES, socket.MSG_TRUNC) > 0
        except BlockingIOError:
            return True
        except OSError:
            return False

    def windows(self) -> list[dict[str, float]]:
        """Payload, data segments and acknowledgements between one mark and the next."""
        return [
            {
                "payload_bytes": last.payload_bytes - first.payload_bytes,
                "segments": last.data_segments - first.data_segments,
                "acks": last.acks - first.acks,
                "seconds": last.at_seconds - first.at_seconds,
            }
            for first, last in zip(self.marks, self.marks[1:], strict=False)
        ]


class Inbox:
    """One connection on which single messages come."""

    def __init__(self, sock: socket.socket, source: str) -> None:
        self.sock, self.source = sock, source
        self.head = b""
        self.left = 0

    def read(self, waste: mmap.mmap, arrivals: list[MessageArrival]) -> bool:
        """Take what has arrived; False when the connection has ended."""
        try:
            while True:
                if self.left:
                    got = self.sock.recv_into(waste, min(self.left, DISCARD_BYTES), socket.MSG_TRUNC)
                    self.left -= got
                    if got and not self.left:
                        size, sent = MESSAGE.unpack(self.head)
                        seconds = (time.monotonic_ns() - sent) / 1e9
                        arrivals.append({"from": self.source, "bytes": size, "seconds": seconds})
                        self.head = b""
                else:
                    data = self.sock.recv(MESSAGE.size - len(self.head))
                    got = len(data)
                    self.head += data
                    if len(self.head) == MESSAGE.size:
                        self.left = MESSAGE.unpack(self.head)[0]
                if not got:
                    return False
        except BlockingIOError:
            return True
        except OSError:
            return False
