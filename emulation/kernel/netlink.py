"""Just enough raw rtnetlink(7) to read queueing disciplines exactly and in microseconds.

`tc -j` rounds rates and times, prints no JSON for classes before iproute2 6.3, and takes milliseconds to
start; the kernel's own message has the integers. Layouts: linux/netlink.h, linux/rtnetlink.h,
linux/pkt_sched.h, linux/gen_stats.h.
"""

import os
import socket
import struct
from collections.abc import Iterator

from emulation.errors import EmulationError
from emulation.kernel.facts import ShaperFacts

__all__ = ["ROOT", "TICK_NS", "TcSocket", "decode_filter", "decode_tc"]

RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTCLASS, RTM_GETTCLASS, RTM_GETTFILTER = 36, 38, 40, 42, 46
RTM_GETLINK = 18
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ECHO, _NLM_F_DUMP = 0x1, 0x8, 0x300
ROOT = 0xFFFFFFFF
"""As a parent: of an interface's root qdisc (TC_H_ROOT)."""
TICK_NS = 64
"""The kernel keeps a bucket's depth as time at the rate, in ticks of 64 ns (PSCHED_SHIFT)."""
_TIMEOUT_SECONDS = 5.0
"""The kernel answers at once; a silence is an error, never a hang."""

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_TCMSG = struct.Struct("=B3xiIII")  # tcmsg: family, ifindex, handle, parent, info
_IFINFOMSG = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_IFLA_MTU, _IFLA_STATS64, _IFLA_GSO_MAX_SEGS = 4, 23, 40
_LINK_STATS = struct.Struct("=QQQQ")  # rtnl_link_stats64 begins: received, sent packets, received, sent bytes
_ATTRIBUTE = struct.Struct("=HH")
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_RATESPEC = "BBHhHI"  # tc_ratespec; its last field is bytes/s
_TBF = struct.Struct("=" + _RATESPEC * 2 + "III")  # tc_tbf_qopt: rate, peak rate, limit, buffer, mtu
_HTB = struct.Struct("=" + _RATESPEC * 2 + "IIIII")  # tc_htb_opt: rate, ceil, buffer, cbuffer, quantum, level, prio
_HTB_ROOT = struct.Struct("=IIIII")  # tc_htb_glob: version, rate2quantum, defcls, debug, direct_pkts
_QUEUE = struct.Struct("=IIIII")  # gnet_stats_queue: qlen, backlog, drops, requeues, overlimits

# linux/rtnetlink.h TCA_*, linux/gen_stats.h TCA_STATS_*
_KIND, _OPTIONS, _STATS2, _CHAIN = 1, 2, 7, 11
_STATS_BASIC, _STATS_QUEUE, _STATS_PKT64 = 1, 3, 8
_TBF_PARMS, _TBF_RATE64, _TBF_PRATE64 = 1, 4, 5
_NETEM = struct.Struct("=IIIIII")  # tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter
_NETEM_REORDER, _NETEM_LOSS, _NETEM_LATENCY64, _NETEM_JITTER64 = 3, 5, 10, 11
_NETEM_GEMODEL = 2
_CERTAIN = 0xFFFFFFFF  # netem's probabilities are shares of it
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_U32_CLASSID, _U32_SEL, _U32_TERMINAL = 1, 5, 1
_U32_HEAD, _U32_KEY = struct.Struct("=BBBxHHhhI"), struct.Struct("=4s4sii")  # tc_u32_sel, tc_u32_key: mask, value
_U32_OUR_ATTRIBUTES = {
    _U32_CLASSID,
    2,
    _U32_SEL,
    9,
    11,
    12,
}  # and TCA_U32_HASH, _PCNT, _FLAGS, _PAD, which say nothing more
_DESTINATION = 16  # of an IPv4 header


def _attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start, end) of each attribute's value."""
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            return
        yield kind & 0x3FFF, start + 4, start + length
        start += (length + 3) & ~3


def _nested(data: bytes, start: int, end: int) -> dict[int, bytes]:
    return {kind: data[first:last] for kind, first, last in _attributes(data, start, end)}


def _bytes_of(ticks: int, bytes_per_second: int) -> int:
    """A bucket's depth in bytes from its time in ticks at a rate."""
    return round(ticks * TICK_NS * bytes_per_second / 1e9)


def _options(kind: str, data: bytes, start: int, end: int) -> ShaperFacts:
    """A qdisc's or class's settings as integers in our units."""
    if kind in ("pfifo", "bfifo") and end - start >= 4:
        (limit,) = _U32.unpack_from(data, start)
        return {"limit_packets": limit} if kind == "pfifo" else {"limit_bytes": limit}
    if kind == "netem" and end - start >= _NETEM.size:
        return _netem_options(data, start, end)
    nested = _nested(data, start, end)
    if kind == "tbf" and _TBF_PARMS in nested:
        fields = _TBF.unpack(nested[_TBF_PARMS])
        rate = _U64.unpack(nested[_TBF_RATE64])[0] if _TBF_RATE64 in nested else fields[5]
        peak = _U64.unpack(nested[_TBF_PRATE64])[0] if _TBF_PRATE64 in nested else fields[11]
        return {
            "rate_bps": rate * 8,
            "overhead_bytes": fields[2],
            "burst_bytes": _bytes_of(fields[13], rate),
            "peak_bps": peak * 8,
            "peak_burst_bytes": _bytes_of(fields[14], peak),
            "limit_bytes": fields[12],
        }
    if kind == "htb" and _HTB_PARMS in nested:
        fields = _HTB.unpack(nested[_HTB_PARMS])
        rate = _U64.unpack(nested[_HTB_RATE64])[0] if _HTB_RATE64 in nested else fields[5]
        ceil = _U64.unpack(nested[_HTB_CEIL64])[0] if _HTB_CEIL64 in nested else fields[11]
        burst, cburst = _bytes_of(fields[12], rate), _bytes_of(fields[13], ceil)
        return {
            "rate_bps": rate * 8,
            "overhead_bytes": fields[2],
            "ceil_bps": ceil * 8,
            "burst_bytes": burst,
            "cburst_bytes": cburst,
        }
    if kind == "htb" and _HTB_INIT in nested:
        return {"default_class": _HTB_ROOT.unpack(nested[_HTB_INIT][:20])[2]}
    return {}


def _netem_options(data: bytes, start: int, end: int) -> ShaperFacts:
    """struct tc_netem_qopt and the attributes behind it."""
    latency, limit, loss, _, _, jitter = _NETEM.unpack_from(data, start)
    nested = _nested(data, start + _NETEM.size, end)
    delay_ns = _U64.unpack(nested[_NETEM_LATENCY64])[0] if _NETEM_LATENCY64 in nested else latency * TICK_NS
    jitter_ns = _U64.unpack(nested[_NETEM_JITTER64])[0] if _NETEM_JITTER64 in nested else jitter * TICK_NS
    reorder = _U32.unpack_from(nested[_NETEM_REORDER])[0] if _NETEM_REORDER in nested else 0
    options: ShaperFacts = {
        "limit_packets": limit,
        "delay_us": round(delay_ns / 1000),
        "jitter_us": round(jitter_ns / 1000),
        "loss_share": loss / _CERTAIN,
        "reorder_share": reorder / _CERTAIN,
    }
    models = _nested(nested[_NETEM_LOSS], 0, len(nested[_NETEM_LOSS])) if _NETEM_LOSS in nested else {}
    if _NETEM_GEMODEL in models:
        enter, leave = struct.unpack_from("=II", models[_NETEM_GEMODEL])
        options["gemodel_enter_share"], options["gemodel_leave_share"] = enter / _CERTAIN, leave / _CERTAIN
    return options


def _statistics(data: bytes, start: int, end: int) -> ShaperFacts:
    """TCA_STATS2: 64-bit bytes, which count the header of every segment of a super-packet."""
    nested = _nested(data, start, end)
    if _STATS_BASIC not in nested or _STATS_QUEUE not in nested:  # tbf's own class counts nothing
        return {}
    total, packets = struct.unpack_from("=QI", nested[_STATS_BASIC])
    if _STATS_PKT64 in nested:
        (packets,) = _U64.unpack_from(nested[_STATS_PKT64])
    _, backlog, drops, _, overlimits = _QUEUE.unpack(nested[_STATS_QUEUE])
    return {
        "bytes": total,
        "packets": packets,
        "drops": drops,
        "backlog_bytes": backlog,
        "overlimits": overlimits,
    }


def decode_tc(message: bytes) -> ShaperFacts:
    """One RTM_NEWQDISC or RTM_NEWTCLASS message (after the netlink header) as a dictionary."""
    _, ifindex, handle, parent, info = _TCMSG.unpack_from(message)
    spans = {kind: (first, last) for kind, first, last in _attributes(message, _TCMSG.size, len(message))}
    first, last = spans[_KIND]
    kind = message[first:last].rstrip(b"\0").decode()
    decoded: ShaperFacts = {
        "kind": kind,
        "ifindex": ifindex,
        "handle": handle,
        "parent": parent,
        "info": info,
    }
    if _OPTIONS in spans:
        decoded |= _options(kind, message, *spans[_OPTIONS])
    if _STATS2 in spans:
        decoded |= _statistics(message, *spans[_STATS2])
    return decoded


def decode_filter(message: bytes) -> str | None:
    """One RTM_NEWTFILTER message: `10.77.0.2 -> 2` if u32 sends one destination to a class and does nothing else.

    Other filters are told by their kind; None: a hash table that filters are kept in.
    """
    _, _, _, parent, info = _TCMSG.unpack_from(message)
    nested = _nested(message, _TCMSG.size, len(message))
    kind = nested[_KIND].rstrip(b"\0").decode()
    options = _nested(nested.get(_OPTIONS, b""), 0, len(nested.get(_OPTIONS, b"")))
    if kind == "u32" and _U32_SEL not in options:
        return None
    of_ipv4 = info & 0xFFFF == socket.htons(0x0800) and not any(nested.get(_CHAIN, b""))
    if kind == "u32" and of_ipv4 and options.keys() <= _U32_OUR_ATTRIBUTES and _U32_CLASSID in options:
        selector, (target,) = options[_U32_SEL], _U32.unpack(options[_U32_CLASSID])
        flags, _, keys, *_ = _U32_HEAD.unpack_from(selector)
        if flags == _U32_TERMINAL and keys == 1 and target >> 16 == parent >> 16:
            mask, value, *at = _U32_KEY.unpack_from(selector, _U32_HEAD.size)
            if mask == b"\xff" * 4 and at == [_DESTINATION, 0]:
                return f"{socket.inet_ntoa(value)} -> {target & 0xFFFF:x}"
    return f"another {kind}"


class TcSocket:
    """A netlink socket, bound for life to the network namespace in which it was opened; `descriptor`: by another."""

    def __init__(self, descriptor: int | None = None) -> None:
        kind = (socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket = socket.socket(*kind, fileno=descriptor)
        if descriptor is None:
            self._socket.bind((0, 0))
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._sequence = 0

    def root_qdisc(self, ifindex: int) -> ShaperFacts:
        """The qdisc that is now the root of an interface: one request, one answer, about 10 us."""
        self._send(RTM_GETQDISC, _NLM_F_ECHO, ifindex, ROOT)  # without "echo" the answer goes to listeners only
        return next(self._answers(dump=False))

    def interface_sent(self, ifindex: int) -> tuple[int, int]:
        """(packets, bytes) that an interface has sent; a super-packet counts as one, with one header."""
        _, packets, _, sent = _LINK_STATS.unpack_from(self._link(ifindex)[_IFLA_STATS64])
        return packets, sent

    def interface_limits(self, ifindex: int) -> ShaperFacts:
        """How large packets and super-packets may be."""
        link = self._link(ifindex)
        return {
            "mtu": _U32.unpack(link[_IFLA_MTU])[0],
            "gso_max_segs": _U32.unpack(link[_IFLA_GSO_MAX_SEGS])[0],
        }

    def qdiscs(self) -> list[ShaperFacts]:
        """Every qdisc of the namespace."""
        self._send(RTM_GETQDISC, _NLM_F_DUMP, 0, 0)
        return list(self._answers(dump=True))

    def classes(self, ifindex: int) -> list[ShaperFacts]:
        """Every class on an interface."""
        self._send(RTM_GETTCLASS, _NLM_F_DUMP, ifindex, 0)
        return list(self._answers(dump=True))

    def filters(self, ifindex: int, handle: int) -> list[str]:
        """What `decode_filter` says of every filter of a root qdisc."""
        self._send(RTM_GETTFILTER, _NLM_F_DUMP, ifindex, handle)
        return [said for said in map(decode_filter, self._messages(dump=True)) if said]

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _link(self, ifindex: int) -> dict[int, bytes]:
        self._request(RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, ifindex, 0, 0))
        message = next(self._messages(dump=False))
        return _nested(message, _IFINFOMSG.size, len(message))

    def _send(self, kind: int, flags: int, ifindex: int, parent: int) -> None:
        self._request(kind, flags, _TCMSG.pack(0, ifindex, 0, parent, 0))

    def _request(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)

    def _answers(self, *, dump: bool) -> Iterator[ShaperFacts]:
        return map(decode_tc, self._messages(dump=dump))

    def _messages(self, *, dump: bool) -> Iterator[bytes]:
        """What the kernel answers, without its headers."""
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise EmulationError("the kernel did not answer about its shapers") from error
            start = 0
            while start < len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, start)
                body = data[start + _HEADER.size : start + length]
                start += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (number,) = struct.unpack_from("=i", body)
                    raise EmulationError(f"reading the shapers failed: {os.strerror(-number)}")
                yield body
                if not dump:
                    return
