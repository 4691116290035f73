"""Delay, jitter, loss and reordering without netem, and rates that change too quickly for a token bucket: packets wait
in the kernel's NFQUEUE, a relay lets them go.

    sender ── shaper ── switch: mangle FORWARD, NFQUEUE ─────────────── shaper ── receiver
                                    │ number, time of arrival     ▲ accept, drop
                                    └──────────── relay ──────────┘

One process for all paths of a network. It is told of each packet's arrival, by the kernel's own time stamp, and says
when it may go on; no payload is copied, and of the headers only the length where a rate is the relay's. In constant
delay one verdict releases everything that is due. There is no bypass: when the relay dies its queues go, packets stop,
and the run fails. `python -m emulation.shaping.delay_line` is the relay; `emulation.shaping.delays` starts it, tells it
what to do and watches it; what waits, and until when, is in `emulation.shaping.waiting`.

Commands come as JSON lines on standard input, one answer each on standard output. Layouts: linux/netfilter/
nfnetlink.h, nfnetlink_queue.h.
"""

import ctypes
import gc
import heapq
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque

from emulation.kernel.syscalls import in_netns
from emulation.shaping.waiting import Held, Line, Orders, QueueFacts, Rate, RateFacts, Served

__all__ = ["COUNTERS", "SLOT", "main"]

COUNTERS = ("beats_ns", "packets", "lost", "overtaking", "released", "late", "lateness_ns", "worst_ns", "dropped")
SLOT = struct.Struct("=" + "Q" * len(COUNTERS))
"""The counters in the shared file, of packets. `beats_ns`: when the relay last went round (CLOCK_MONOTONIC). `late`:
let go more than 1 ms after they were due; lateness is summed over all, the worst is since the start. `dropped`: before
a rate of the relay's, for its queue was full."""
LATE_NS = 1_000_000

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = (_SUBSYSTEM | kind for kind in range(4))
_REQUEST, _ACK = 0x1, 0x5
_CFG_COMMAND, _CFG_PARAMETERS, _CFG_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_BIND, _META, _COPY, _F_GSO = 1, 1, 2, 4
_ACCEPT, _DROP = 1, 0
_ERROR = 2  # NLMSG_ERROR
_QUEUE_PACKETS = 100_000
_RECEIVE_BYTES = 64 << 20
_SO_RCVBUFFORCE, _SO_TIMESTAMP = 33, 29
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_PR_SET_TIMERSLACK = 29
_BATCH_MESSAGES = 128
_IDLE_SECONDS = 0.02
_PUBLISH_NS = 10_000_000
_NOENT = 2

_HEAD = struct.Struct("=IHHIIBB")  # nlmsghdr, then nfgenmsg's family and version; its queue number is big-endian
_WHO = struct.Struct(">H4xI")  # queue number, (attribute's head), packet's number: at 18
_STAMP_HEAD = struct.pack("=HH", 20, 4)  # NFQA_TIMESTAMP
_STAMP = struct.Struct(">QQ")
_LENGTH_HEAD = struct.pack("=HH", 4 + 4, 10)  # NFQA_PAYLOAD, of which the first four bytes are copied
_LENGTH = struct.Struct(">2xH")  # RFC 791: version, service, total length
_COPIED_BYTES = 4
_HEADERS_BYTES = 52
"""Of each TCP segment, as `emulation.spec.network.TCP_IP_HEADER_BYTES`; not imported, for the relay starts lean."""


def _message(kind: int, flags: int, queue: int, attributes: bytes) -> bytes:
    return _HEAD.pack(20 + len(attributes), kind, flags, 0, 0, 0, 0) + struct.pack(">H", queue) + attributes


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _verdict(kind: int, queue: int, verdict: int, number: int) -> bytes:
    return _message(kind, _REQUEST, queue, struct.pack("=HH", 12, 2) + struct.pack(">II", verdict, number))


class Relay:
    """The netlink socket, the lines, the rates, and the loop."""

    def __init__(self, netns: str | None, statistics: str, seed: int) -> None:
        with in_netns(netns):
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self.socket.bind((0, 0))
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        self.socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self.seed = seed
        self.lines: dict[int, Line] = {}
        self.rates: dict[str, Rate] = {}
        self.downs: list[Rate] = []
        """Those of what nodes receive."""
        self.coming: list[tuple[int, int, Served, Rate]] = []
        """A heap of packets that a delay lets go at a time, numbered, and the rate that serves them then."""
        self.passed = 0
        self.orders: deque[Orders] = deque()
        """Told ahead of their times, in order of these."""
        self.told: dict[str, QueueFacts | RateFacts] = {}
        """The last of each queue and rate, also what is still to come."""
        self.mtu = self.framing_bytes = 0
        self.beats_ns = self.packets = self.lost = self.overtaking = 0
        self.released = self.late = self.lateness_ns = self.worst_ns = self.dropped = 0
        self.stamp_at = self.length_at = 0
        """Where in a message the time stamp is, and the length; the kernel keeps one order."""
        with open(statistics, "r+b") as file:
            self.counters = mmap.mmap(file.fileno(), SLOT.size)
        self.stamps = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.stamps.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)  # while it is open the kernel stamps arrivals
        self.unread = b""

    def run(self) -> None:
        """Until standard input ends."""
        buffer = bytearray(8192)
        watched = [self.socket, sys.stdin]
        soonest = 0
        while True:
            wait = min(_IDLE_SECONDS, max(0, soonest - time.monotonic_ns()) / 1e9)
            ready = select.select(watched, [], [], wait)[0]
            if self.rates:
                self.keep_up(time.monotonic_ns())
            if self.socket in ready:
                self.read(buffer)
            if sys.stdin in ready and not self.commands():
                return
            now = time.monotonic_ns()
            served = self.keep_up(now) if self.rates else 1 << 62
            soonest = min(served, self.release(now))
            if now - self.beats_ns > _PUBLISH_NS:
                self.beats_ns = now
                SLOT.pack_into(self.counters, 0, *(getattr(self, name) for name in COUNTERS))

    def commands(self) -> bool:
        """What the driver has said; False: it is gone."""
        data = os.read(sys.stdin.fileno(), 1 << 16)
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            self.told |= {_name(each): each for each in (*told.get("rates", ()), *told.get("lines", ()))}
            if "at_ns" in told and self.rates:
                self.orders.append(told)
            elif not told.get("read"):
                self.orders.clear()  # what holds from now on holds also then
                self.obey(told, time.monotonic_ns())
            _answer({"holds": list(self.told.values()) if "lines" in told or told.get("read") else told["rates"]})
        return bool(data)

    def obey(self, told: Orders, at_ns: int) -> None:
        """What was told, from then on; what left before did so as it was before."""
        if self.rates:
            self.arrive(at_ns)
        for each in told.get("rates", ()):
            self.mtu, self.framing_bytes = each["mtu"], each["framing_bytes"]
            self.rates.setdefault(each["name"], Rate()).set(each["bps"], each["queue_bytes"])
        for each in told.get("lines", ()):
            line = self.line(each["queue"], rated=bool(each["up"] or each["down"]))
            line.set(each)
            line.up, line.down = self.rates.get(each["up"] or ""), self.rates.get(each["down"] or "")
        self.downs = list({id(line.down): line.down for line in self.lines.values() if line.down}.values())

    def line(self, queue: int, *, rated: bool = False) -> Line:
        """The line of a queue, which is bound when it is first asked for; `rated`: with its packets' lengths."""
        if queue not in self.lines:
            copied = struct.pack(">IB", _COPIED_BYTES, _COPY) if rated else struct.pack(">IB", 0, _META)
            self._configure(queue, _attribute(_CFG_COMMAND, struct.pack(">BxH", _BIND, 0)))
            self._configure(queue, _attribute(_CFG_PARAMETERS, copied))
            self._configure(queue, _attribute(_CFG_MAXLEN, struct.pack(">I", _QUEUE_PACKETS)))
            flag = struct.pack(">I", _F_GSO)
            self._configure(queue, _attribute(_CFG_MASK, flag) + _attribute(_CFG_FLAGS, flag))
            self.lines[queue] = Line(queue, f"{self.seed} {queue}")
        return self.lines[queue]

    def _configure(self, queue: int, attributes: bytes) -> None:
        self.socket.setblocking(True)
        self.socket.send(_message(_CONFIG, _ACK, queue, attributes))
        while True:
            answer = self.socket.recv(4096)
            if _kind(answer) == _ERROR:  # what else comes belongs to another queue
                error = struct.unpack_from("=i", answer, 16)[0]
                break
            self.take(answer, time.monotonic_ns(), time.time_ns())
        self.socket.setblocking(False)
        if error:
            raise OSError(-error, f"queue {queue}: {os.strerror(-error)}")

    def read(self, buffer: bytearray) -> None:
        """Take the packets that have arrived, a bounded number of them."""
        receive = self.socket.recv_into
        try:
            for _ in range(_BATCH_MESSAGES):
                receive(buffer)
                self.take(buffer, time.monotonic_ns(), time.time_ns())
        except BlockingIOError:
            pass

    def take(self, message: bytes | bytearray, now: int, clock: int) -> None:
        """One packet: how long it waits from when it arrived, or its end."""
        if _kind(message) != _PACKET:
            error = -struct.unpack_from("=i", message, 16)[0] if _kind(message) == _ERROR else 0
            if error not in (0, _NOENT):  # a packet that its queue no longer has is gone, no more
                raise OSError(error, f"the kernel refused a verdict: {os.strerror(error)}")
            return
        queue, number = _WHO.unpack_from(message, 18)
        stamp_at = self.stamp_at
        if message[stamp_at : stamp_at + 4] != _STAMP_HEAD:
            stamp_at = self.stamp_at = _find(message, _STAMP_HEAD)
        if stamp_at:
            seconds, microseconds = _STAMP.unpack_from(message, stamp_at + 4)
            age = clock - seconds * 1_000_000_000 - microseconds * 1000
            if 0 < age < 1_000_000_000:
                now -= age
        line = self.lines[queue]
        self.packets += 1
        size = self.size(message) if line.rated else 0
        if line.up is not None:
            self.enter(line.up, now, (line, number, size))
        else:
            self.delay(line, number, now, size)

    def size(self, message: bytes | bytearray) -> int:
        """Of a packet, in bytes as a rate counts them: each of its segments has headers of its own."""
        if message[self.length_at : self.length_at + 4] != _LENGTH_HEAD:
            self.length_at = _find(message, _LENGTH_HEAD)
        (length,) = _LENGTH.unpack_from(message, self.length_at + 4)
        more = max(0, -(-(length - _HEADERS_BYTES) // (self.mtu - _HEADERS_BYTES)) - 1) if length > self.mtu else 0
        return length + more * _HEADERS_BYTES + (1 + more) * self.framing_bytes

    def enter(self, rate: Rate, at_ns: int, packet: Served) -> None:
        """Queue a packet before a rate, or drop it."""
        self.leave(rate, at_ns)
        if not rate.put(at_ns, packet):
            self.dropped += 1
            self.socket.send(_verdict(_VERDICT, packet[0].queue, _DROP, packet[1]))

    def leave(self, rate: Rate, until_ns: int) -> None:
        """Pass on what a rate has served up to then."""
        for at_ns, (line, number, size) in rate.serve(until_ns):
            if rate is line.down:
                line.append(at_ns, number)
            else:
                self.delay(line, number, at_ns, size)

    def keep_up(self, now: int) -> int:
        """All that happens up to now, in order; when something does again."""
        while self.orders and self.orders[0]["at_ns"] <= now:
            told = self.orders.popleft()
            self.obey(told, told["at_ns"])
        return min([self.arrive(now), *(told["at_ns"] for told in list(self.orders)[:1])])

    def arrive(self, now: int) -> int:
        """Serve every rate up to now, and what delays let go to those behind them; when the next packet is served."""
        for rate in self.rates.values():
            if rate.queue:
                self.leave(rate, now)
        while self.coming and self.coming[0][0] <= now:
            at_ns, _, packet, rate = heapq.heappop(self.coming)
            self.enter(rate, at_ns, packet)
        for rate in self.downs:
            self.leave(rate, now)
        waits = [self.coming[0][0]] if self.coming else []
        return min([*waits, *(rate.soonest() for rate in self.rates.values() if rate.queue)], default=1 << 62)

    def delay(self, line: Line, number: int, now: int, size: int) -> None:
        """A packet that enters the delay now: how long it waits, or its end."""
        if line.loss and line.lost():
            self.lost += 1
            self.socket.send(_verdict(_VERDICT, line.queue, _DROP, number))
            return
        overtakes = bool(line.reorder) and line.random.random() < line.reorder
        self.overtaking += overtakes
        due = now if overtakes else now + (line.wait_ns() if line.jitter_ns else line.delay_ns)
        if line.down is not None:
            if not (overtakes or line.jitter_ns):
                due = line.last_left = max(due, line.last_left)
            self.passed += 1
            heapq.heappush(self.coming, (due, self.passed, (line, number, size), line.down))
        elif overtakes:
            self.socket.send(_verdict(_VERDICT, line.queue, _ACCEPT, number))
        elif line.jitter_ns:
            heapq.heappush(line.jittered, (due, number))
        else:
            line.append(max(due, line.last_due), number)  # a shorter delay reorders nothing

    def release(self, now: int) -> int:
        """Let go what is due; when the next is, or a far time."""
        soonest = 1 << 62
        for line in self.lines.values():
            waiting, jittered = line.waiting, line.jittered
            if waiting:
                due = waiting[0][0]
                if due <= now:
                    number = 0
                    while waiting and waiting[0][0] <= now:
                        due, number = waiting.popleft()
                        self._note(now - due)
                    self.socket.send(_verdict(_VERDICT_BATCH, line.queue, _ACCEPT, number))
                if waiting:
                    soonest = min(soonest, waiting[0][0])
            verdicts = []
            while jittered and jittered[0][0] <= now:
                due, number = heapq.heappop(jittered)
                self._note(now - due)
                verdicts.append(_verdict(_VERDICT, line.queue, _ACCEPT, number))
            if verdicts:
                self.socket.send(b"".join(verdicts))
            if jittered:
                soonest = min(soonest, jittered[0][0])
        return soonest

    def _note(self, lateness_ns: int) -> None:
        """Remember how late a packet is let go."""
        self.released += 1
        self.lateness_ns += lateness_ns
        self.late += lateness_ns > LATE_NS
        if lateness_ns > self.worst_ns:
            self.worst_ns = lateness_ns


def _name(settings: QueueFacts | RateFacts) -> str:
    return f"queue {settings['queue']}" if "queue" in settings else f"rate {settings['name']}"


def _kind(message: bytes | bytearray) -> int:
    return struct.unpack_from("=H", message, 4)[0]


def _find(message: bytes | bytearray, head: bytes) -> int:
    """Where the attribute that begins so is; 0 if the kernel sent none."""
    at, end = 20, struct.unpack_from("=I", message)[0]
    while at + 4 <= end:
        length = struct.unpack_from("=H", message, at)[0]
        if message[at : at + 4] == head:
            return at
        at += max(4, (length + 3) & ~3)
    return 0


def _first_line() -> bytes:
    """Byte by byte: what follows is read by descriptor."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(sys.stdin.fileno(), 1)):
        line += byte
    return line


def _answer(answer: Held) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _hurry() -> str:
    """Ask for the processor when it is needed; how much of that was granted.

    Real-time priority would be worse: the shapers' own timers end in the kernel's ordinary threads, which it starves.
    """
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.nice(-15)
        return "nice -15"
    except PermissionError:
        return "normal priority"


def main() -> None:
    """Serve: the first line of standard input says in which namespace, its end ends the relay.

    The kernel's parent-death signal would come too early: it is sent when the thread that started this process ends,
    and that may be a player's, whose schedule was the first to ask for a delay.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = json.loads(_first_line())
    relay = Relay(told["netns"], told["statistics"], told["seed"])
    gc.collect()
    gc.freeze()
    gc.disable()
    _answer({"priority": _hurry()})
    relay.run()


if __name__ == "__main__":
    main()
