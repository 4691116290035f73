"""What the kernel says of its own accord while nobody should touch the links: rtnetlink(7), nf_tables' notifications.

A change that is taken back before the next readback is in no readback; the kernel tells it to whoever listens. Reading
a root qdisc is told to listeners, too, in the same words as a change: so what is told counts where it differs from what
there was when listening began. Rules of the old iptables are told to nobody.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from emulation.kernel.facts import ShaperFacts
from emulation.kernel.netlink import TcSocket, decode_tc
from emulation.nodes.base import Backend

__all__ = ["Notices"]

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
# linux/rtnetlink.h: RTMGRP_LINK, _TC, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE
_GROUPS = 0x1 | 0x8 | 0x10 | 0x40 | 0x80
_NETFILTER, _NFT_GROUP, _NFT_SUBSYSTEM = 12, 1 << 6, 10  # NETLINK_NETFILTER, NFNLGRP_NFTABLES, NFNL_SUBSYS_NFTABLES
_NEW_QDISC, _NEW_CLASS = 36, 40
_SAID = {
    16: "an interface was changed",
    17: "an interface was removed",
    20: "an address was added",
    21: "an address was removed",
    24: "a route was added or changed",
    25: "a route was removed",
    32: "a routing rule was added",
    33: "a routing rule was removed",
    37: "a qdisc was removed",
    41: "a class was removed",
    44: "a filter was added or changed",
    45: "a filter was removed",
}
_COUNTED = frozenset({"bytes", "packets", "drops", "backlog_bytes", "overlimits", "info"})
_ROOM = 1 << 20


class Notices:
    """`with Notices(backend) as notices:` in the namespaces that the backend names (`Backend.namespaces`)."""

    def __init__(self, backend: Backend) -> None:
        self._ears = {name: backend.at(name, _Ear) for name in backend.namespaces}

    def __enter__(self) -> "Notices":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def heard(self) -> list[str]:
        """What has changed since this was asked last, in words; empty: nothing."""
        return [f"{name}: {text}" for name, ear in self._ears.items() for text in dict.fromkeys(ear.heard())]

    def close(self) -> None:
        """Listen no more."""
        for ear in self._ears.values():
            ear.close()
        self._ears = {}


class _Ear:
    """In one namespace; made there."""

    def __init__(self) -> None:
        self._sockets = [_listening(socket.NETLINK_ROUTE, _GROUPS)]
        with suppress(OSError):  # a kernel without nf_tables tells nothing of it
            self._sockets.append(_listening(_NETFILTER, _NFT_GROUP))
        reader = TcSocket()
        try:
            qdiscs = reader.qdiscs()
            classes = [each for name in _interfaces() for each in reader.classes(name)]
        finally:
            reader.close()
        self._known = {_settings(each) for each in (*qdiscs, *classes)}

    def heard(self) -> Iterator[str]:
        for each in self._sockets:
            while (data := _read(each)) is not None:
                if not data:
                    yield "more changed than can be told"
                    continue
                yield from self._said(data)

    def _said(self, data: bytes) -> Iterator[str]:
        start = 0
        while start + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, start)
            if length < _HEADER.size:
                return
            body = data[start + _HEADER.size : start + length]
            start += (length + 3) & ~3
            if kind >> 8 == _NFT_SUBSYSTEM:
                yield "a netfilter rule was changed"
            elif kind in (_NEW_QDISC, _NEW_CLASS):
                found = decode_tc(body)
                if _settings(found) not in self._known:
                    yield f"a {found['kind']} was added or changed"
            elif kind in _SAID:
                yield _SAID[kind]

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def _listening(family: int, groups: int) -> socket.socket:
    found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
    found.bind((0, groups))
    return found


def _read(ear: socket.socket) -> bytes | None:
    """A datagram; None: there is none; empty: some were lost."""
    try:
        return ear.recv(1 << 17)
    except BlockingIOError:
        return None
    except OSError:  # ENOBUFS: the kernel had more to tell than there was room for
        return b""


def _interfaces() -> list[int]:
    return [index for index, _ in socket.if_nameindex()]


def _settings(found: ShaperFacts) -> tuple[tuple[str, Any], ...]:
    """Of a qdisc or class, without what is counted."""
    return tuple(sorted((key, str(value)) for key, value in found.items() if key not in _COUNTED))
