"""The agent that measures links, one per node: `python -m emulation.prober 10.77.0.1`.

Commands come as JSON lines on stdin, one answer each on stdout. TCP senders push random bytes with
sendfile, receivers throw them away in the kernel (MSG_TRUNC), so that two cores carry a dozen flows of 1
Gbit/s; UDP echoes round trips. One epoll loop, no threads, standard library only: it starts in 50 ms.
"""

import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["main"]

TCP_PORT, UDP_PORT = 7077, 7078
CHUNK_BYTES = 1 << 20
DISCARD_BYTES = 1 << 22
NOTSENT_LOWAT_BYTES = 1 << 20
PING_BYTES = 64
PING_TIMEOUT_SECONDS = 2.0

_TCP_NOTSENT_LOWAT = 25
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close at once, drop what was not sent


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

    def report(self) -> dict[str, float]:
        """Payload, data segments and acknowledgements per second between the two marks."""
        if len(self.marks) < 2:
            return {"goodput_bps": 0.0, "segments_per_second": 0.0, "acks_per_second": 0.0, "seconds": 0.0}
        first, last = self.marks[0], self.marks[-1]
        seconds = last.at_seconds - first.at_seconds
        return {
            "goodput_bps": (last.payload_bytes - first.payload_bytes) * 8 / seconds,
            "segments_per_second": (last.data_segments - first.data_segments) / seconds,
            "acks_per_second": (last.acks - first.acks) / seconds,
            "seconds": seconds,
        }


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
        self.alarms: list[tuple[float, Callable[[], None]]] = []
        self.unread = b""
        self.running = True
        self._listen()

    def run(self) -> None:
        """Until stdin ends."""
        self._answer({"ready": self.address})
        while self.running:
            timeout = max(0.0, self.alarms[0][0] - time.monotonic()) if self.alarms else -1.0
            for descriptor, event in self.epoll.poll(timeout):
                handler = self.handlers.get(descriptor)
                if handler is not None:
                    handler(event)
            while self.alarms and time.monotonic() >= self.alarms[0][0]:
                self.alarms.pop(0)[1]()

    # -- sockets

    def _listen(self) -> None:
        self.listener = socket.create_server((self.address, TCP_PORT), backlog=256)
        self.listener.setblocking(False)
        self.echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.echo.bind((self.address, UDP_PORT))
        self.echo.setblocking(False)
        self._watch(self.listener.fileno(), select.EPOLLIN, self._on_connection)
        self._watch(self.echo.fileno(), select.EPOLLIN, self._on_echo)
        self._watch(sys.stdin.fileno(), select.EPOLLIN, self._on_command)

    def _watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        self.handlers[descriptor] = handler
        self.epoll.register(descriptor, events)

    def _forget(self, sock: socket.socket) -> None:
        descriptor = sock.fileno()
        self.handlers.pop(descriptor, None)
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
            self.epoll.modify(receiver.sock.fileno(), 0)
            self.handlers.pop(receiver.sock.fileno(), None)

    def _on_echo(self, _event: int) -> None:
        try:
            data, source = self.echo.recvfrom(2048)
            self.echo.sendto(data, source)
        except OSError:
            return

    # -- commands

    def _on_command(self, _event: int) -> None:
        data = os.read(sys.stdin.fileno(), 65536)
        if not data:
            self.running = False
            return
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            if command["do"] == "flows":
                self._start_flows(command)
            elif command["do"] == "ping":
                self._answer({"microseconds": [self._ping(command["to"]) for _ in range(command["count"])]})
            else:
                self._answer({"error": f"unknown command {command['do']!r}"})

    def _answer(self, answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    def _start_flows(self, command: dict[str, Any]) -> None:
        self.alarms = [
            (command["start"], self._send),
            (command["begin"], self._mark),
            (command["end"], self._mark),
            (command["stop"], self._finish_flows),
        ]
        for address in command["to"]:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
            sock.bind((self.address, 0))
            sock.connect_ex((address, TCP_PORT))
            self.senders[sock.fileno()] = sock

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
        """Abort every flow of the round, then say what arrived here."""
        for sock in self.senders.values():
            self._forget(sock)
        self.senders.clear()
        received = {each.source: each.report() for each in self.receivers.values()}
        for receiver in self.receivers.values():
            self._forget(receiver.sock)
        self.receivers.clear()
        self._answer({"received": received})

    def _ping(self, address: str) -> float | None:
        """One UDP round trip in microseconds; None if it got lost."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PING_TIMEOUT_SECONDS)
            sock.bind((self.address, 0))
            sock.connect((address, UDP_PORT))
            sent = time.perf_counter()
            try:
                sock.send(bytes(PING_BYTES))
                sock.recv(2048)
            except OSError:
                return None
            return (time.perf_counter() - sent) * 1e6


def main() -> None:
    """Serve on the address given as the only argument."""
    Prober(sys.argv[1]).run()


if __name__ == "__main__":
    main()
