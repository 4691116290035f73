"""Delay, jitter, loss and reordering without netem: packets wait in the kernel's NFQUEUE, a relay lets them go.

    sender ── shaper ── switch: mangle FORWARD, NFQUEUE ─────────────── shaper ── receiver
                                    │ number, time of arrival     ▲ accept, drop
                                    └──────────── relay ──────────┘

One process for all paths of a network. It is told of each packet's arrival, by the kernel's own time stamp, and says
when it may go on; no payload is copied. In constant delay one verdict releases everything that is due. There is no
bypass: when the relay dies its queues go, packets stop, and the run fails. `python -m emulation.shaping.delay_line` is
the relay; `emulation.shaping.delays` starts it, tells it what to do and watches it.

Commands come as JSON lines on standard input, one answer each on standard output. Layouts: linux/netfilter/
nfnetlink.h, nfnetlink_queue.h.
"""

import ctypes
import gc
import heapq
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from typing import Any

from emulation.syscalls import in_netns

__all__ = ["COUNTERS", "SLOT", "main"]

COUNTERS = ("beats_ns", "packets", "lost", "overtaking", "released", "late", "lateness_ns", "worst_ns")
SLOT = struct.Struct("=" + "Q" * len(COUNTERS))
"""The counters in the shared file, of packets. `beats_ns`: when the relay last went round (CLOCK_MONOTONIC). `late`:
let go more than 1 ms after they were due; lateness is summed over all, the worst is since the start."""
LATE_NS = 1_000_000

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = (_SUBSYSTEM | kind for kind in range(4))
_REQUEST, _ACK = 0x1, 0x5
_CFG_COMMAND, _CFG_PARAMETERS, _CFG_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_BIND, _META, _F_GSO = 1, 1, 4
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
_BIAS_NS = 60_000
"""Taken from every delay: what a packet spends on its way into the queue and out again, measured on an idle machine. A
delay below it is none."""
_NOENT = 2

_HEAD = struct.Struct("=IHHIIBB")  # nlmsghdr, then nfgenmsg's family and version; its queue number is big-endian
_WHO = struct.Struct(">H4xI")  # queue number, (attribute's head), packet's number: at 18
_STAMP_HEAD = struct.pack("=HH", 20, 4)  # NFQA_TIMESTAMP
_STAMP = struct.Struct(">QQ")


def _message(kind: int, flags: int, queue: int, attributes: bytes) -> bytes:
    return _HEAD.pack(20 + len(attributes), kind, flags, 0, 0, 0, 0) + struct.pack(">H", queue) + attributes


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _verdict(kind: int, queue: int, verdict: int, number: int) -> bytes:
    return _message(kind, _REQUEST, queue, struct.pack("=HH", 12, 2) + struct.pack(">II", verdict, number))


class Line:
    """One queue: the packets of all paths that are alike."""

    def __init__(self, queue: int, seed: str) -> None:
        self.queue = queue
        self.waiting: deque[tuple[int, int]] = deque()
        """(due, number), in order: released together."""
        self.jittered: list[tuple[int, int]] = []
        """The same as a heap: released one by one."""
        self.random = random.Random(seed)
        self.delay_ns = self.jitter_ns = self.last_due = 0
        self.distribution, self.loss, self.reorder = "normal", 0.0, 0.0
        self.enter, self.leave, self.bad = 0.0, 1.0, False
        self.plain = True
        self.settings: dict[str, Any] = {}
        """As told."""

    def set(self, settings: dict[str, Any]) -> None:
        """From now on; what waits keeps its time."""
        self.settings = settings
        self.delay_ns = max(0, settings["delay_us"] * 1000 - _BIAS_NS)
        self.jitter_ns = settings["jitter_us"] * 1000
        self.distribution, self.reorder = settings["distribution"], settings["reorder"]
        self.loss, self.enter, self.leave = settings["loss"], settings["enter"], settings["leave"]
        self.plain = not (self.jitter_ns or self.loss or self.reorder)

    def append(self, due: int, number: int) -> None:
        """Behind all that wait; while jittered ones do, a verdict for "all up to this one" would let them go too."""
        self.last_due = due
        if self.jittered:
            heapq.heappush(self.jittered, (due, number))
        else:
            self.waiting.append((due, number))

    def lost(self) -> bool:
        """Whether the next packet is; `enter` above 0: the two states of Gilbert and Elliott."""
        if not self.enter:
            return self.random.random() < self.loss
        self.bad = self.random.random() >= self.leave if self.bad else self.random.random() < self.enter
        return self.bad

    def wait_ns(self) -> int:
        """The next packet's delay."""
        if self.distribution == "uniform":
            extra = self.random.uniform(-1.0, 1.0)
        elif self.distribution == "pareto":  # shape 3, mean 0, as netem's table
            extra = (1.0 - self.random.random()) ** (-1 / 3) - 1.5
        else:
            extra = self.random.gauss(0.0, 1.0)
        return max(0, self.delay_ns + int(extra * self.jitter_ns))


class Relay:
    """The netlink socket, the lines, and the loop."""

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
        self.beats_ns = self.packets = self.lost = self.overtaking = 0
        self.released = self.late = self.lateness_ns = self.worst_ns = 0
        self.stamp_at = 0
        """Where in a message the time stamp is; the kernel keeps one order."""
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
            if self.socket in ready:
                self.read(buffer)
            if sys.stdin in ready and not self.commands():
                return
            now = time.monotonic_ns()
            soonest = self.release(now)
            if now - self.beats_ns > _PUBLISH_NS:
                self.beats_ns = now
                SLOT.pack_into(self.counters, 0, *(getattr(self, name) for name in COUNTERS))

    def commands(self) -> bool:
        """What the driver has said; False: it is gone."""
        data = os.read(sys.stdin.fileno(), 1 << 16)
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            for each in json.loads(line)["lines"]:
                self.line(each["queue"]).set(each)
            _answer({"holds": [line.settings for line in self.lines.values()]})
        return bool(data)

    def line(self, queue: int) -> Line:
        """The line of a queue, which is bound when it is first asked for."""
        if queue not in self.lines:
            self._configure(queue, _attribute(_CFG_COMMAND, struct.pack(">BxH", _BIND, 0)))
            self._configure(queue, _attribute(_CFG_PARAMETERS, struct.pack(">IB", 0, _META)))
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
            stamp_at = self.stamp_at = _find_stamp(message)
        if stamp_at:
            seconds, microseconds = _STAMP.unpack_from(message, stamp_at + 4)
            age = clock - seconds * 1_000_000_000 - microseconds * 1000
            if 0 < age < 1_000_000_000:
                now -= age
        line = self.lines[queue]
        self.packets += 1
        if line.plain:
            line.append(max(now + line.delay_ns, line.last_due), number)  # a shorter delay reorders nothing
            return
        if line.loss and line.lost():
            self.lost += 1
            self.socket.send(_verdict(_VERDICT, queue, _DROP, number))
        elif line.reorder and line.random.random() < line.reorder:
            self.overtaking += 1
            self.socket.send(_verdict(_VERDICT, queue, _ACCEPT, number))
        elif line.jitter_ns:
            heapq.heappush(line.jittered, (now + line.wait_ns(), number))
        else:
            line.append(max(now + line.delay_ns, line.last_due), number)

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


def _kind(message: bytes | bytearray) -> int:
    return struct.unpack_from("=H", message, 4)[0]


def _find_stamp(message: bytes | bytearray) -> int:
    """Where the attribute NFQA_TIMESTAMP is; 0 if the kernel sent none."""
    at, end = 20, struct.unpack_from("=I", message)[0]
    while at + 4 <= end:
        length = struct.unpack_from("=H", message, at)[0]
        if message[at : at + 4] == _STAMP_HEAD:
            return at
        at += max(4, (length + 3) & ~3)
    return 0


def _first_line() -> bytes:
    """Byte by byte: what follows is read by descriptor."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(sys.stdin.fileno(), 1)):
        line += byte
    return line


def _answer(answer: dict[str, Any]) -> None:
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
    _answer({"ready": True, "priority": _hurry()})
    relay.run()


if __name__ == "__main__":
    main()
