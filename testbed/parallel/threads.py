"""Ranks as threads of one process, over real TCP on loopback: where no network is asked about."""

import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from testbed.errors import PeerLost
from testbed.parallel.transport import Sockets

__all__ = ["listeners", "on_ranks"]

T = TypeVar("T")


def listeners(world: int) -> list[socket.socket]:
    """A listening socket per rank, each at an address of its own on loopback."""
    return [socket.create_server((f"127.0.0.{rank + 1}", 0), backlog=world) for rank in range(world)]


def on_ranks(world: int, work: Callable[[Sockets], T]) -> list[T]:
    """`work` on every rank at once, each a thread with connections of its own; the answers by rank.

    Raises what failed first, not what the others then missed.
    """
    listening = listeners(world)
    addresses = [listener.getsockname() for listener in listening]
    answers: dict[int, T] = {}
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            transport = Sockets.connect(rank, addresses, listener=listening[rank])
            try:
                answers[rank] = work(transport)
            finally:
                transport.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,), name=f"rank {rank}") for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, PeerLost)), errors[0])
    return [answers[rank] for rank in range(world)]
