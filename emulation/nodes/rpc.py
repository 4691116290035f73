"""The driver's connections to its helpers in containers (`emulation.nodes.helper`): questions, answers, descriptors."""

import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypedDict

import emulation.errors
from emulation.errors import CapabilityError, EmulationError, LinkError

__all__ = ["Channel", "Door", "Message", "receive", "send"]

_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")
_MOST_DESCRIPTORS = 8
_ANSWER_SECONDS = 30.0
_COME_SECONDS = 20.0
_LOOK_SECONDS = 0.2
_MOST_WAITING = 4096
"""Helpers that have come and are not let in yet: all of a network, before its last container is started."""


_LOST = "a container of this network has ended, or does not answer; nothing measured after that counts; run again."


class Message(TypedDict, total=False):
    """A helper's name, when it comes; a question; its answer."""

    name: str
    task: str
    arguments: Sequence[Any]
    value: Any
    descriptors: int
    """How many come with the answer."""
    error: str
    """The class of what was raised (emulation.errors), …"""
    said: str
    """… and its text."""


class Channel:
    """One helper, which lives as long as this is open: one question at a time, from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()

    def ask(self, task: Callable[..., Any], *arguments: Any, descriptors: Sequence[int] = ()) -> Any:
        """What a task gives there; of one that hands over descriptors (value, descriptors). Those given here are
        handed over behind the arguments.

        Raises what the task raised there, and LinkError if the helper is gone.
        """
        with self._lock:
            try:
                self._socket.settimeout(_ANSWER_SECONDS)
                send(self._socket, {"task": task.__name__, "arguments": arguments}, descriptors)
                answer, received = receive(self._socket)
            except (OSError, EOFError, ValueError):
                self._socket.close()  # a late answer must not be taken for the next one's
                raise LinkError(_LOST) from None
            except BaseException:
                self._socket.close()
                raise
        if "error" in answer:
            raise getattr(emulation.errors, answer["error"], EmulationError)(answer["said"])
        if len(received) != answer["descriptors"]:
            raise EmulationError("descriptors were lost on their way: too many files are open here (ulimit -n).")
        return (answer["value"], received) if received else answer["value"]

    def alive(self) -> bool:
        """Whether the helper still holds its end."""
        if not self._lock.acquire(blocking=False):
            return True  # it is being asked
        try:
            return not select.select([self._socket], [], [], 0)[0]  # unasked it says one thing, that it has ended
        except (OSError, ValueError):  # closed here
            return False
        finally:
            self._lock.release()

    def close(self) -> None:
        """And with it the helper's life."""
        self._socket.close()


class Door:
    """Where helpers come in: a socket in a folder that containers see.

    Let in are the engine's root and we, for others of this machine may reach it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(path)
            os.chmod(path, 0o666)
        except OSError as error:
            self._socket.close()
            raise EmulationError(f"no socket could be made at {path}: {error}; set TMPDIR to another folder.") from None
        self._socket.listen(_MOST_WAITING)
        self._socket.settimeout(_LOOK_SECONDS)

    def meet(self, names: Iterable[str], check: Callable[[], None]) -> dict[str, Channel]:
        """A channel to each of these. While they do not come, `check` may say why not; CapabilityError in the end."""
        missing, found = set(names), {}
        deadline = time.monotonic() + _COME_SECONDS
        try:
            while missing:
                try:
                    name, sock = self._one()
                except TimeoutError:
                    check()
                    if time.monotonic() > deadline:
                        raise CapabilityError(
                            f"containers have not come within {_COME_SECONDS:g} s ({', '.join(sorted(missing))}): "
                            "this machine is too busy, or the engine keeps them where this process is not (a virtual "
                            "machine, another container): run it there, or use docker compose (docs/docker.md)."
                        ) from None
                    continue
                if name in missing:
                    missing.discard(name)
                    found[name] = Channel(sock)
                else:
                    sock.close()
        except BaseException:
            for channel in found.values():
                channel.close()
            raise
        return found

    def _one(self) -> tuple[str, socket.socket]:
        sock, _ = self._socket.accept()
        said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        with suppress(OSError, EOFError, ValueError, LookupError, TypeError):
            if _CREDENTIALS.unpack(said)[1] in (0, os.getuid()):
                sock.settimeout(_COME_SECONDS)
                return receive(sock)[0]["name"], sock
        sock.close()
        raise TimeoutError

    def close(self) -> None:
        """Nobody else comes in."""
        self._socket.close()


def send(sock: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """One message, and descriptors with it (SCM_RIGHTS, unix(7))."""
    text = json.dumps(message).encode()
    data = _LENGTH.pack(len(text)) + text
    if descriptors:
        socket.send_fds(sock, [data[:1]], list(descriptors))
        data = data[1:]
    sock.sendall(data)


def receive(sock: socket.socket) -> tuple[Message, list[int]]:
    """One message; EOFError where the other end is closed."""
    header, descriptors, _, _ = socket.recv_fds(sock, _LENGTH.size, _MOST_DESCRIPTORS)
    header += _exactly(sock, _LENGTH.size - len(header)) if header else b""
    if not header:
        raise EOFError
    return json.loads(_exactly(sock, _LENGTH.unpack(header)[0])), descriptors


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data
