"""The same exchanges through `torch.distributed`: NCCL between GPUs, or gloo.

On GPUs messages stay on the device. There is no ballast: real machines have their own size.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from testbed.errors import PeerLost

__all__ = ["Distributed"]

_Post = tuple[Callable[..., Any], Tensor, int]
"""`dist.irecv` or `dist.isend`, of what, with whom."""


class Distributed:
    """Direct sends and receives over the default process group, receives posted first."""

    head_bytes = 0
    lanes = False
    """Two threads on two communicators may wait for each other for ever on a GPU: sums come after the backward pass."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.device = device
        self.sent: Counter[str] = Counter()
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def exchange(
        self,
        outgoing: list[Tensor | None],
        channels: dict[str, int],
        *,
        incoming: list[int | None] | None = None,
        ballast: int = 0,
    ) -> "_HostTicket | _DeviceTicket":
        """As `testbed.parallel.transport.Transport` says; `ballast` must be 0."""
        assert ballast == 0, "only emulated nodes carry ballast"
        self.sent.update(channels)
        due = [None if m is None else m.numel() for m in outgoing] if incoming is None else incoming
        received = [None if size is None else torch.empty(size, dtype=torch.uint8, device=self.device) for size in due]
        posts: list[_Post] = [
            (dist.irecv, inbox, other) for other, inbox in enumerate(received) if inbox is not None and inbox.numel()
        ]
        for other, message in enumerate(outgoing):
            if message is not None and message.numel():
                posts.append((dist.isend, message.contiguous().to(self.device), other))
        if self._side is not None:
            return _DeviceTicket(self.rank, posts, received, self._side)
        return _HostTicket(self.rank, posts, received)

    def overlap(self, wanted: bool) -> None:
        """Transfers always run beside the computation here."""

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


class _HostTicket:
    """Over gloo. It tells nobody when a transfer ends but who waits for it: a thread does, and looks at the clock."""

    def __init__(self, rank: int, posts: list[_Post], received: list[Tensor | None]) -> None:
        self._rank, self._received = rank, received
        self._posts = posts  # what leaves must stay until it has left
        self._posted, self.seconds = time.perf_counter(), 0.0
        self._error: BaseException | None = None
        self._work = []
        for post, tensor, other in posts:
            with _lost(rank, [other]):
                self._work.append(post(tensor, other))
        self._thread = threading.Thread(target=self._finish, name="arrivals", daemon=True)
        self._thread.start()

    def _finish(self) -> None:
        try:
            for work, (_, _, other) in zip(self._work, self._posts, strict=True):
                with _lost(self._rank, [other]):
                    work.wait()
        except BaseException as error:
            self._error = error
        self.seconds = time.perf_counter() - self._posted

    def wait(self) -> list[Tensor | None]:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._received


class _DeviceTicket:
    """Over NCCL. The device's own clock tells when the computation came to the posting and when the last byte was
    here; a stream on the side waits for that, so that it is told apart from what computes meanwhile."""

    def __init__(self, rank: int, posts: list[_Post], received: list[Tensor | None], side: "torch.cuda.Stream") -> None:
        self._received, self.seconds = received, 0.0
        self._posts = posts  # what leaves must stay until it has left
        self._begun, self._ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._begun.record()
        with _lost(rank, sorted({other for _, _, other in posts})):
            work = dist.batch_isend_irecv([dist.P2POp(*post) for post in posts]) if posts else []
        with torch.cuda.stream(side):
            for each in work:
                each.wait()
            self._ended.record()

    def wait(self) -> list[Tensor | None]:
        self._ended.synchronize()  # the clock must not run ahead of the device
        if self._posts:
            self._begun.synchronize()
            self.seconds = self._begun.elapsed_time(self._ended) / 1000
            self._posts = []
        return self._received


@contextmanager
def _lost(rank: int, others: list[int]) -> Iterator[None]:
    """What the backend raises when a peer has gone, as sockets say it."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[[^]]*\] ", "", str(error)).split(". ")[0].splitlines()[0]
        names = " or ".join(str(other) for other in others)
        raise PeerLost(f"rank {rank} lost its connection to rank {names}: {reason}") from error
