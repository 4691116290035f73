"""The agent that measures links, one per node: `python -m emulation.measure.probe_agent 10.77.0.1`.

Commands come as JSON lines on stdin, one answer each on stdout. TCP senders push random bytes with
sendfile, receivers throw them away in the kernel (MSG_TRUNC), so that two cores carry a dozen flows of 1
Gbit/s; UDP echoes round trips and counts losses; single messages are timed from the first byte's sending to the last
one's arrival, for all nodes share one clock. One loop, no threads, standard library only: it starts in 50 ms.

    flows     TCP streams to some nodes until a given time; what arrived here between given times
    ping      echo round trips to one node, several under way at once
    datagrams numbered packets to one node, evenly spaced; `counted`: how many came from whom since last asked
    message   so many bytes to one node on a connection that stays; `arrivals`: those that came, with both times
"""

import heapq
import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from emulation.measure.probe_receiver import (
    DISCARD_BYTES,
    MESSAGE,
    Inbox,
    MessageArrival,
    ProbeAnswer,
    Receiver,
    arrival,
)

__all__ = ["main"]

TCP_PORT, ECHO_PORT, COUNT_PORT, MESSAGE_PORT = 7077, 7078, 7079, 7080
CHUNK_BYTES = 1 << 20
NOTSENT_LOWAT_BYTES = 1 << 20
PING_BYTES = 64

_TCP_NOTSENT_LOWAT = 25
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close at once, drop what was not sent


class Prober:
    """The loop and what it watches."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.waste = mmap.mmap(-1, DISCARD_BYTES)
        self.payload = os.memfd_create("payload")
        os.write(self.payload, os.urandom(CHUNK_BYTES))
        self.receivers: dict[int, Receiver] = {}
        self.senders: dict[int, socket.socket] = {}
        self.outboxes: dict[str, socket.socket] = {}
        self.counted: dict[str, list[int]] = {}
        """Numbers of the datagrams that came, by source."""
        self.arrivals: list[MessageArrival] = []
        self.overflow = 0
        self.alarms: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = count()
        self.unread = b""
        self.running = True
        self._listen()

    def run(self) -> None:
        """Until stdin ends."""
        self._answer({"ready": self.address})
        while self.running:
            wait = max(0.0, self.alarms[0][0] - time.monotonic()) if self.alarms else None
            # epoll counts in milliseconds; select, on the one descriptor of epoll, in microseconds
            if select.select([self.epoll], [], [], wait)[0]:
                for descriptor, event in self.epoll.poll(0):
                    handler = self.handlers.get(descriptor)
                    if handler is not None:
                        handler(event)
            while self.alarms and time.monotonic() >= self.alarms[0][0]:
                heapq.heappop(self.alarms)[2]()

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Do it then (time.monotonic)."""
        heapq.heappush(self.alarms, (moment, next(self.numbers), action))

    # -- sockets

    def _listen(self) -> None:
        self.listener = socket.create_server((self.address, TCP_PORT), backlog=1024)
        self.letters = socket.create_server((self.address, MESSAGE_PORT), backlog=256)
        self.echo, self.counter = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.echo.bind((self.address, ECHO_PORT))
        self.counter.bind((self.address, COUNT_PORT))
        for sock in (self.echo, self.counter):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for sock, handler in (
            (self.listener, self._on_connection),
            (self.letters, self._on_letterbox),
            (self.echo, self._on_echo),
            (self.counter, self._on_datagram),
        ):
            sock.setblocking(False)
            self._watch(sock.fileno(), select.EPOLLIN, handler)
        self._watch(sys.stdin.fileno(), select.EPOLLIN, self._on_command)

    def _watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        self.handlers[descriptor] = handler
        self.epoll.register(descriptor, events)

    def _forget(self, sock: socket.socket) -> None:
        descriptor = sock.fileno()
        if self.handlers.pop(descriptor, None) is not None:
            self.epoll.unregister(descriptor)
        sock.close()

    def _on_connection(self, _event: int) -> None:
        try:
            sock, (source, _port) = self.listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        receiver = Receiver(sock, source)
        self.receivers[sock.fileno()] = receiver
        self._watch(sock.fileno(), select.EPOLLIN, lambda _event: self._on_data(receiver))

    def _on_data(self, receiver: Receiver) -> None:
        if not receiver.discard(self.waste):
            self.epoll.unregister(receiver.sock.fileno())
            self.handlers.pop(receiver.sock.fileno(), None)

    def _on_letterbox(self, _event: int) -> None:
        sock, (source, _port) = self.letters.accept()
        sock.setblocking(False)
        inbox = Inbox(sock, source)

        def take(_event: int) -> None:
            if not inbox.read(self.waste, self.arrivals):
                self._forget(sock)

        self._watch(sock.fileno(), select.EPOLLIN, take)

    def _on_echo(self, _event: int) -> None:
        try:
            while True:
                data, source = self.echo.recvfrom(2048)
                self.echo.sendto(data, source)
        except OSError:
            return

    def _on_datagram(self, _event: int) -> None:
        try:
            while True:
                data, (source, _port) = self.counter.recvfrom(2048)
                self.counted.setdefault(source, []).append(int.from_bytes(data[:4], "little"))
        except OSError:
            return

    # -- commands

    def _on_command(self, _event: int) -> None:
        data = os.read(sys.stdin.fileno(), 1 << 20)
        if not data:
            self.running = False
            return
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            getattr(self, f"do_{command.pop('do')}")(**command)

    def _answer(self, answer: ProbeAnswer) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    def do_flows(self, to: list[str], streams: int, start: float, marks: list[float], stop: float) -> None:
        """Send to each of `to` by so many connections from `start` on."""
        for address in to * streams:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
            sock.bind((self.address, 0))
            sock.connect_ex((address, TCP_PORT))
            self.senders[sock.fileno()] = sock
        self.at(start, self._send)
        for moment in marks:
            self.at(moment, self._mark)
        self.at(stop, self._finish_flows)

    def _send(self) -> None:
        """Everyone is connected by now: a handshake lost among bulk data would cost its flow a second."""
        for sock in self.senders.values():
            self._watch(sock.fileno(), select.EPOLLOUT, lambda event, sock=sock: self._on_writable(sock, event))

    def _on_writable(self, sock: socket.socket, event: int) -> None:
        try:
            if event & (select.EPOLLERR | select.EPOLLHUP):
                raise ConnectionError
            os.sendfile(sock.fileno(), self.payload, 0, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.senders.pop(sock.fileno(), None)
            self._forget(sock)

    def _mark(self) -> None:
        for receiver in self.receivers.values():
            receiver.marks.append(arrival(receiver.sock))

    def _finish_flows(self) -> None:
        """Abort every flow of the round, then say what arrived here, summed over the connections of a source."""
        resent = sum(_resent(sock) for sock in self.senders.values())
        for sock in self.senders.values():
            self._forget(sock)
        self.senders.clear()
        received: dict[str, list[dict[str, float]]] = {}
        for receiver in self.receivers.values():
            windows = receiver.windows()
            known = received.setdefault(receiver.source, [dict.fromkeys(window, 0.0) for window in windows])
            for total, window in zip(known, windows, strict=False):
                for key in ("payload_bytes", "segments", "acks"):
                    total[key] += window[key]
                total["seconds"] = window["seconds"]
            self._forget(receiver.sock)
        self.receivers.clear()
        self._answer({"received": received, "resent_segments": resent})

    def do_ping(self, to: str, count: int, interval: float, patience: float) -> None:
        """`count` UDP round trips, one started each `interval` seconds; None for those that got lost."""
        times: list[float | None] = [None] * count
        sent: list[float] = [0.0] * count
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((self.address, 0))
        sock.connect((to, ECHO_PORT))

        def on_answer(_event: int) -> None:
            try:
                while True:
                    number = int.from_bytes(sock.recv(2048)[:4], "little")
                    times[number] = (time.perf_counter() - sent[number]) * 1e6
            except OSError:
                pass

        def send(number: int) -> None:
            sent[number] = time.perf_counter()
            with suppress(OSError):
                sock.send(number.to_bytes(4, "little") + bytes(PING_BYTES - 4))

        def finish() -> None:
            self._forget(sock)
            self._answer({"microseconds": times})

        self._watch(sock.fileno(), select.EPOLLIN, on_answer)
        begin = time.monotonic()
        for number in range(count):
            self.at(begin + number * interval, lambda number=number: send(number))
        self.at(begin + count * interval + patience, finish)

    def do_datagrams(self, to: str, count: int, interval: float) -> None:
        """Send `count` datagrams, numbered from 1; the answer is how many the own kernel took."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((self.address, 0))
        sock.connect((to, COUNT_PORT))
        begin, taken = time.monotonic(), [0, 0]

        def send() -> None:
            while taken[0] < count and begin + taken[0] * interval <= time.monotonic():
                taken[0] += 1
                try:
                    sock.send(taken[0].to_bytes(4, "little") + bytes(PING_BYTES - 4))
                    taken[1] += 1
                except OSError:
                    pass
            if taken[0] < count:
                self.at(begin + taken[0] * interval, send)
            else:
                sock.close()
                self._answer({"sent": taken[1]})

        send()

    def do_counted(self) -> None:
        """Datagrams that came since last asked, by source, and in how many gaps others were missing between them.

        `overflow`: how many came, but found this program too slow.
        """
        counted = {
            source: {"came": len(numbers), "gaps": _gaps(sorted(numbers))} for source, numbers in self.counted.items()
        }
        overflow = _socket_drops(self.address, COUNT_PORT)
        self._answer({"counted": counted, "overflow": overflow - self.overflow})
        self.counted, self.overflow = {}, overflow

    def do_message(self, to: str, size: int, at: float) -> None:
        """Send one message then, on the connection to that node, which is made if there is none."""
        if to not in self.outboxes:
            sock = socket.create_connection((to, MESSAGE_PORT), source_address=(self.address, 0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.outboxes[to] = sock
        sock, body = self.outboxes[to], os.urandom(min(size, CHUNK_BYTES)) * -(-size // CHUNK_BYTES)

        def send() -> None:
            sock.sendall(MESSAGE.pack(size, time.monotonic_ns()) + body[:size])
            self._answer({"sent": size})

        self.at(at, send)

    def do_arrivals(self) -> None:
        """Messages that came since last asked."""
        self._answer({"arrivals": self.arrivals})
        self.arrivals.clear()


def _gaps(numbers: list[int]) -> int:
    """How often numbers are missing before one that came."""
    return sum(after > before + 1 for before, after in zip([0, *numbers], numbers, strict=False))


def _socket_drops(address: str, port: int) -> int:
    """Datagrams that found a UDP socket's buffer full, since it was opened (/proc/net/udp)."""
    local = f"{int.from_bytes(socket.inet_aton(address), 'little'):08X}:{port:04X}"
    with open("/proc/thread-self/net/udp", encoding="ascii") as file:
        return sum(int(line.split()[-1]) for line in file if line.split()[1] == local)


def _resent(sock: socket.socket) -> int:
    """Segments that an outgoing flow has sent again (tcpi_total_retrans)."""
    try:
        return struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232), 100)[0]
    except OSError:
        return 0


def main() -> None:
    """Serve on the address given as the only argument."""
    Prober(sys.argv[1]).run()


if __name__ == "__main__":
    main()
