"""Ranks as threads of one process, over real TCP on loopback."""

import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from testbed.parallel.transport import Sockets

T = TypeVar("T")


def listeners(world: int) -> list[socket.socket]:
    """A listening socket per rank, each at an address of its own on loopback."""
    return [socket.create_server((f"127.0.0.{rank + 1}", 0), backlog=world) for rank in range(world)]


def run_ranks(world: int, work: Callable[[Sockets], T]) -> list[T]:
    """`work` on every rank at once; the answers by rank. Raises what the first failing rank raised."""
    listening = listeners(world)
    addresses = [listener.getsockname() for listener in listening]
    answers: list[T | None] = [None] * world
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

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    return answers  # pyrefly: ignore
