"""From payload to wire: does every byte that was handed to a socket show in the shaper's counters, and no other?

Four counts are held against each other, per step and node:

    payload   what the exchange was asked to send, by channel, in closed form
    sockets   tcp_info of every connection: bytes acknowledged, bytes sent, segments (linux/tcp.h)
    wire      the root qdisc of the node's interface: bytes of whole packets, segment by segment
    interface the interface's own counter, in which a super-packet of k segments has one header and counts as one
              packet: 66 bytes are added for each of the k - 1 others

The peers must have acknowledged exactly the payload; the wire must carry what the sockets sent plus 66 bytes of
headers for each of their segments, acknowledgements among them, within 1 % or 4 KB. Packets that found the node's
own queue full count as sent though they never reached the wire: then the wire lies between that and the payload
with its headers alone. The interface, corrected, must agree with the wire as closely.
"""

import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "HEADER_BYTES",
    "SocketBytes",
    "balance",
    "interface_wire_bytes",
    "predicted_wire_bytes",
    "settle",
    "socket_bytes",
]

HEADER_BYTES = 66
"""Ethernet 14 + IPv4 20 + TCP 20 + timestamps 12."""
_TOLERANCE, _TOLERANCE_BYTES = 0.01, 4096
_INFO_BYTES = 216
# offsets in struct tcp_info, Linux 5.5 and later
_UNACKED, _BYTES_ACKED, _SEGS_OUT, _NOTSENT, _BYTES_SENT = 24, 120, 136, 144, 200


@dataclass(frozen=True, kw_only=True)
class SocketBytes:
    """Sums over a rank's connections since they were opened."""

    acked: int
    """Payload bytes that the peers have acknowledged."""
    sent: int
    """Payload bytes, those sent again included."""
    resent: int
    segments: int
    """Segments of any kind, pure acknowledgements included."""

    def since(self, earlier: "SocketBytes") -> "SocketBytes":
        """The difference of two readings."""
        return SocketBytes(
            acked=self.acked - earlier.acked,
            sent=self.sent - earlier.sent,
            resent=self.resent - earlier.resent,
            segments=self.segments - earlier.segments,
        )


def socket_bytes(connections: Iterable[socket.socket]) -> SocketBytes:
    """What the kernel says of these TCP connections."""
    acked = sent = resent = segments = 0
    for connection in connections:
        info = _info(connection)
        acked += struct.unpack_from("<Q", info, _BYTES_ACKED)[0]
        connection_sent, connection_resent = struct.unpack_from("<QQ", info, _BYTES_SENT)
        sent, resent = sent + connection_sent, resent + connection_resent
        segments += struct.unpack_from("<I", info, _SEGS_OUT)[0]
    return SocketBytes(acked=acked, sent=sent, resent=resent, segments=segments)


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


def predicted_wire_bytes(sockets: SocketBytes) -> int:
    """Payload as often as it was sent, and a header for every segment."""
    return sockets.sent + HEADER_BYTES * sockets.segments


def interface_wire_bytes(sent_bytes: int, sent_packets: int, wire_packets: int) -> int:
    """An interface's bytes with the headers that its super-packets have on the wire."""
    return sent_bytes + HEADER_BYTES * (wire_packets - sent_packets)


def balance(
    handed_bytes: int,
    sockets: SocketBytes,
    wire_bytes: int | None,
    *,
    segment_bytes: int = 1448,
    drops: int | None = 0,
    interface_bytes: int | None = None,
) -> list[str]:
    """What does not add up, in sentences; empty if all does.

    `wire_bytes` None: nothing counts (host nodes). `segment_bytes`: payload of a full segment. `drops`: packets that
    found one of the node's queues full, or the delay line's, which are all nodes'.
    `interface_bytes`: the interface's count, corrected.
    """
    problems = []
    if sockets.acked != handed_bytes:
        problems.append(f"ledger: {handed_bytes} bytes were handed to the sockets, whose peers have {sockets.acked}")
    if wire_bytes is not None and interface_bytes is not None:
        allowed = max(_TOLERANCE * wire_bytes, _TOLERANCE_BYTES)
        if abs(interface_bytes - wire_bytes) > allowed:
            problems.append(
                f"ledger: the shaper counted {wire_bytes} bytes, the interface {interface_bytes} with its headers "
                f"(allowed difference {allowed:.0f})"
            )
    if wire_bytes is not None:
        most = predicted_wire_bytes(sockets)
        least = sockets.acked + HEADER_BYTES * (sockets.acked // segment_bytes) if drops else most
        allowed = max(_TOLERANCE * most, _TOLERANCE_BYTES)
        if not least - allowed <= wire_bytes <= most + allowed:
            expected = f"{most}" if least == most else f"{least} to {most}"
            problems.append(
                f"ledger: {expected} bytes are predicted on the wire, the shaper counted {wire_bytes} "
                f"(allowed difference {allowed:.0f})"
            )
    return problems


def _info(connection: socket.socket) -> bytes:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if len(info) < _INFO_BYTES:
        raise OSError(f"this kernel's tcp_info has {len(info)} bytes; the ledger needs {_INFO_BYTES} (Linux 5.5)")
    return info
