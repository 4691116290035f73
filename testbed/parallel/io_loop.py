"""What moves the bytes of exchanges that are under way over non-blocking sockets.

`Pump` moves them while the caller waits for them; `PumpThread` all the time, so that the caller's computation hides
them. Several exchanges may be under way: on each connection their bytes follow one another in the order of posting.
"""

import selectors
import socket
import threading
from collections import deque
from typing import Any, Protocol

__all__ = ["Pump", "PumpThread"]


class _Flow(Protocol):
    """One connection's share of an exchange (`testbed.parallel.transport._Flow`)."""

    connection: socket.socket
    sending: bool
    receiving: bool

    def send(self) -> None: ...

    def receive(self) -> None: ...


class _Ticket(Protocol):
    flows: dict[int, Any]

    def finish(self) -> None: ...


class _Line:
    """The flows of one connection, in order: the first that has something left to do in each direction acts."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.out: deque[_Flow] = deque()
        self.into: deque[_Flow] = deque()
        self.events = 0

    def send(self) -> None:
        while self.out:
            self.out[0].send()
            if self.out[0].sending:
                return
            self.out.popleft()

    def receive(self) -> None:
        while self.into:
            self.into[0].receive()
            if self.into[0].receiving:
                return
            self.into.popleft()


class Pump:
    """Moves bytes while it is asked to finish an exchange."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lines: dict[socket.socket, _Line] = {}
        self._under_way: deque[_Ticket] = deque()

    def take(self, ticket: _Ticket) -> None:
        """Begin: as much as the kernel takes leaves at once."""
        self._under_way.append(ticket)
        for flow in ticket.flows.values():
            line = self._lines.get(flow.connection)
            if line is None:
                line = self._lines[flow.connection] = _Line(flow.connection)
            if flow.sending:
                line.out.append(flow)
            if flow.receiving:
                line.into.append(flow)
            line.send()
            self._watch(line)
        self._settle()

    def finish(self, ticket: _Ticket) -> None:
        """Return when every byte of the exchange has moved."""
        while any(one is ticket for one in self._under_way):
            self._turn()

    def close(self) -> None:
        """Let go of the connections; what is under way stays as it is."""
        self._selector.close()

    def _turn(self) -> None:
        """Wait until a connection is ready, and act."""
        self._act(self._selector.select())

    def _act(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Move what the ready connections take and give."""
        for key, events in ready:
            line: _Line = key.data
            if events & selectors.EVENT_WRITE:
                line.send()
            if events & selectors.EVENT_READ:
                line.receive()
            self._watch(line)
        self._settle()

    def _watch(self, line: _Line) -> None:
        events = (selectors.EVENT_WRITE if line.out else 0) | (selectors.EVENT_READ if line.into else 0)
        if events == line.events:
            return
        if line.events:
            self._selector.unregister(line.connection)
        if events:
            self._selector.register(line.connection, events, line)
        line.events = events

    def _settle(self) -> None:
        """Exchanges end in the order in which they were posted."""
        while self._under_way and not any(f.sending or f.receiving for f in self._under_way[0].flows.values()):
            self._under_way[0].finish()
            self._under_way.popleft()


class PumpThread(Pump):
    """Moves bytes all the time, in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._error: BaseException | None = None
        self._closing = False
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)
        self._thread.start()

    def take(self, ticket: _Ticket) -> None:
        with self._lock:
            self._raise()
            super().take(ticket)
        self._bell.send(b"!")

    def finish(self, ticket: _Ticket) -> None:
        with self._ended:
            while any(one is ticket for one in self._under_way):
                self._raise()
                self._ended.wait()
            self._raise()

    def close(self) -> None:
        if self._bell.fileno() < 0:
            return
        self._closing = True
        self._bell.send(b"!")
        self._thread.join()
        self._bell.close()
        self._ear.close()
        super().close()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._closing:
            ready = self._selector.select()
            with self._ended:
                try:
                    self._act([one for one in ready if one[0].data is not None])
                    if any(key.data is None for key, _ in ready):
                        self._ear.recv(4096)
                except BaseException as error:
                    self._error = error
                    self._closing = True
                self._ended.notify_all()
