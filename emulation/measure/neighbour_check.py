"""The links of machines that nobody drives from one place, measured by themselves, in a ring: rank r to rank r+1.

    ping     one rank after the other, on links that nothing else uses: the median of round trips
    flow     all at once, each to the next: the rate at which bytes arrive, once the flow is under way; held against the
             rate unless the link loses packets, for then TCP takes less of it

Each rank is told of the link from it to the next. Used beside `testbed shape`: by the nodes of docker-compose.yml.
"""

import json
import socket
import statistics
import struct
import threading
import time
from dataclasses import dataclass
from typing import TypedDict

from emulation.errors import LinkError
from emulation.spec.network import Framing, Link, goodput_bps
from emulation.spec.units import format_delay

__all__ = ["Measured", "MeasuredFacts", "measure"]

PORT = 29_600
_JOIN_SECONDS, _ANSWER_SECONDS = 120.0, 60.0
_PINGS = 20
_FLOW_SECONDS, _UNDER_WAY_SECONDS, _UNDER_WAY_ROUND_TRIPS = 2.0, 1.0, 20
"""Counted for so long, after so long or so many round trips, whichever is more."""
_CHUNK = bytes(1 << 16)
TOLERANCE, ROUND_TRIP_TOLERANCE_US = 0.05, 2_000
"""Of the goodput, which shares its link with the acknowledgements of what comes (up to 2 %), and of the round trip."""
_PING, _TURN, _FLOW = b"p", b"t", b"f"
_UNDER_WAY = struct.Struct("!d")


class MeasuredFacts(TypedDict):
    """As it is written down."""

    peer: str
    goodput_bps: float
    expected_bps: float | None
    round_trip_us: float
    expected_round_trip_us: int
    ok: bool


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The link from one rank to the next."""

    peer: str
    goodput_bps: float
    expected_bps: float | None
    """None: no rate was asked for, or packets are lost."""
    round_trip_us: float
    expected_round_trip_us: int

    def problems(self) -> list[str]:
        """Why it is not what was asked, if so."""
        found = []
        if self.expected_bps is not None and abs(self.goodput_bps / self.expected_bps - 1) > TOLERANCE:
            found.append(
                f"{self.goodput_bps / 1e6:.2f} Mbit/s of goodput arrived at {self.peer} where "
                f"{self.expected_bps / 1e6:.2f} should"
            )
        apart = abs(self.round_trip_us - self.expected_round_trip_us)
        if apart > ROUND_TRIP_TOLERANCE_US + TOLERANCE * self.expected_round_trip_us:
            found.append(
                f"the round trip to {self.peer} takes {format_delay(round(self.round_trip_us))} where "
                f"{format_delay(self.expected_round_trip_us)} were asked for"
            )
        return found

    def record(self) -> MeasuredFacts:
        """JSON-able."""
        return {
            "peer": self.peer,
            "goodput_bps": self.goodput_bps,
            "expected_bps": self.expected_bps,
            "round_trip_us": self.round_trip_us,
            "expected_round_trip_us": self.expected_round_trip_us,
            "ok": not self.problems(),
        }


def measure(
    rank: int, names: list[str], link: Link, *, mtu: int = 1500, framing: Framing = "layer2", port: int = PORT
) -> Measured:
    """This rank's link to the next; every rank calls it. `names`: of all, as they find each other.

    Raises LinkError where a rank does not come or answer, or the link is not what was asked.
    """
    following = names[(rank + 1) % len(names)]
    try:
        patience = _ANSWER_SECONDS + len(names) * (_PINGS + 2) * 2 * link.delay_us / 1e6
        with _Before(names[rank], port, patience) as before, _connected(following, port, patience) as after:
            before.wait(_JOIN_SECONDS)
            found = _measure(rank, following, before, after, link, mtu, framing)
    except (OSError, TimeoutError) as error:
        raise LinkError(f"rank {rank} could not measure its link to {following}: {error}.") from None
    if problems := found.problems():
        raise LinkError(f"the link of rank {rank} is not what was asked: {'; '.join(problems)}.")
    return found


class _Before:
    """What the rank before sends, answered by a thread: pings and flows. A turn is for us."""

    def __init__(self, name: str, port: int, patience: float) -> None:
        self._patience = patience
        address = socket.gethostbyname(name)
        self._listener = socket.create_server((address, port))
        self._turn = threading.Semaphore(0)
        self._came, self._flowed = threading.Event(), threading.Event()
        threading.Thread(target=self._serve, name="before", daemon=True).start()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # closed
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(self._patience)
            self._came.set()
            try:
                while what := connection.recv(1):
                    if what == _PING:
                        connection.sendall(_PING)
                    elif what == _TURN:
                        self._turn.release()
                    else:
                        connection.sendall(json.dumps(_received(connection)).encode() + b"\n")
                        self._flowed.set()
            except OSError:
                return

    def wait(self, seconds: float) -> None:
        if not self._came.wait(seconds):
            raise TimeoutError("the rank before it has not come")

    def turn(self) -> None:
        if not self._turn.acquire(timeout=self._patience):
            raise TimeoutError("its turn has not come")

    def flowed(self) -> None:
        if not self._flowed.wait(self._patience):
            raise TimeoutError("the rank before it has sent nothing")

    def __enter__(self) -> "_Before":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def _connected(name: str, port: int, patience: float) -> socket.socket:
    deadline = time.monotonic() + _JOIN_SECONDS
    while True:
        try:
            connection = socket.create_connection((name, port), timeout=patience)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _measure(
    rank: int, following: str, before: _Before, after: socket.socket, link: Link, mtu: int, framing: Framing
) -> Measured:
    round_trip = 0.0
    for turn in ("join", "ping", "flow"):  # each goes once around the ring, begun by rank 0
        if rank:
            before.turn()
        if turn == "ping":
            round_trip = statistics.median(_ping(after) for _ in range(_PINGS))
        after.sendall(_TURN)
        if not rank:
            before.turn()
    found = _flow(after, max(_UNDER_WAY_SECONDS, _UNDER_WAY_ROUND_TRIPS * round_trip))
    before.flowed()
    rates = [rate for rate in (link.rate_bps, link.down_bps) if rate is not None]
    return Measured(
        peer=following,
        goodput_bps=found["goodput_bps"],
        expected_bps=goodput_bps(min(rates), mtu, framing) if rates and not link.packetwise else None,
        round_trip_us=round_trip * 1e6,
        expected_round_trip_us=2 * link.delay_us,
    )


def _ping(after: socket.socket) -> float:
    began = time.perf_counter()
    after.sendall(_PING)
    if not after.recv(1):
        raise OSError("the other end has gone")
    return time.perf_counter() - began


def _flow(after: socket.socket, under_way_seconds: float) -> dict[str, float]:
    """Send for so long; what the other end says of it."""
    after.sendall(_FLOW + _UNDER_WAY.pack(under_way_seconds))
    deadline = time.monotonic() + under_way_seconds + _FLOW_SECONDS
    sent = 0
    while time.monotonic() < deadline:
        after.sendall(_CHUNK)
        sent += len(_CHUNK)
    after.sendall(b"\1")  # chunks are zeros
    line = b""
    while not line.endswith(b"\n"):
        if not (data := after.recv(4096)):
            raise OSError(f"{sent} bytes were sent, and the other end has gone")
        line += data
    return json.loads(line)


def _received(connection: socket.socket) -> dict[str, float]:
    """The rate at which a flow's bytes arrive, without its beginning."""
    (under_way_seconds,) = _UNDER_WAY.unpack(connection.recv(_UNDER_WAY.size, socket.MSG_WAITALL))
    buffer = bytearray(1 << 18)
    began = now = time.perf_counter()
    since, count = None, 0
    while got := connection.recv_into(buffer):
        now = time.perf_counter()
        if since is not None:
            count += got
        elif now - began > under_way_seconds:
            since = now
        if buffer[got - 1]:
            break
    return {"goodput_bps": 8 * count / (now - since) if since is not None and now > since else 0.0}
