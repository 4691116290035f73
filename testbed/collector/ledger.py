"""From payload to wire: does every byte that was handed to a socket show in the shaper's counters, and no other?

Three counts are held against each other, per step and node:

    payload   what the exchange was asked to send, by channel, in closed form
    sockets   tcp_info of every connection: bytes sent, bytes sent again, segments (linux/tcp.h)
    wire      the root qdisc of the node's interface: bytes of whole packets, segment by segment

Sockets must have sent exactly the payload (once everything is acknowledged); the wire must carry what the sockets
sent plus 66 bytes of headers for each of their segments, acknowledgements among them, within 1 % or 4 KB.
"""

import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["HEADER_BYTES", "SocketBytes", "balance", "settle", "socket_bytes"]

HEADER_BYTES = 66
"""Ethernet 14 + IPv4 20 + TCP 20 + timestamps 12."""
_TOLERANCE, _TOLERANCE_BYTES = 0.01, 4096
_INFO_BYTES = 216
_SEGS_OUT, _NOTSENT, _BYTES_SENT = 136, 144, 200  # offsets in struct tcp_info, Linux 5.5 and later
_UNACKED = 24


@dataclass(frozen=True, kw_only=True)
class SocketBytes:
    """Sums over a rank's connections since they were opened."""

    sent: int
    """Payload bytes, those sent again included."""
    resent: int
    segments: int
    """Segments of any kind, pure acknowledgements included."""

    def since(self, earlier: "SocketBytes") -> "SocketBytes":
        """The difference of two readings."""
        return SocketBytes(
            sent=self.sent - earlier.sent,
            resent=self.resent - earlier.resent,
            segments=self.segments - earlier.segments,
        )


def socket_bytes(connections: Iterable[socket.socket]) -> SocketBytes:
    """What the kernel says of these TCP connections."""
    sent = resent = segments = 0
    for connection in connections:
        info = _info(connection)
        connection_sent, connection_resent = struct.unpack_from("<QQ", info, _BYTES_SENT)
        sent, resent = sent + connection_sent, resent + connection_resent
        segments += struct.unpack_from("<I", info, _SEGS_OUT)[0]
    return SocketBytes(sent=sent, resent=resent, segments=segments)


def settle(connections: Iterable[socket.socket], *, seconds: float = 5.0) -> bool:
    """Wait until everything written has been acknowledged; whether it has, within `seconds`."""
    deadline = time.monotonic() + seconds
    for connection in connections:
        while True:
            info = _info(connection)
            unacked = struct.unpack_from("<I", info, _UNACKED)[0]
            not_sent = struct.unpack_from("<I", info, _NOTSENT)[0]
            if unacked == not_sent == 0:
                break
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0005)
    return True


def balance(handed_bytes: int, sockets: SocketBytes, wire_bytes: int | None) -> list[str]:
    """What does not add up, in sentences; empty if all does. `wire_bytes` None: nothing counts (host nodes)."""
    problems = []
    once = sockets.sent - sockets.resent
    if once != handed_bytes:
        problems.append(f"ledger: {handed_bytes} bytes were handed to the sockets, which sent {once}")
    if wire_bytes is not None:
        predicted = sockets.sent + HEADER_BYTES * sockets.segments
        allowed = max(_TOLERANCE * predicted, _TOLERANCE_BYTES)
        if abs(wire_bytes - predicted) > allowed:
            problems.append(
                f"ledger: {predicted} bytes are predicted on the wire, the shaper counted {wire_bytes} "
                f"(allowed difference {allowed:.0f})"
            )
    return problems


def _info(connection: socket.socket) -> bytes:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if len(info) < _INFO_BYTES:
        raise OSError(f"this kernel's tcp_info has {len(info)} bytes; the ledger needs {_INFO_BYTES} (Linux 5.5)")
    return info
