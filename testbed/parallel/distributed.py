"""The same exchanges through `torch.distributed`: NCCL between real machines, or gloo.

Started by torchrun. On GPUs messages stay on the device. There is no ballast: real machines have their own size.
"""

import time
from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Distributed"]


class Distributed:
    """Direct sends and receives over the default process group, receives posted first."""

    lanes = False
    """Two threads on two communicators may wait for each other for ever on a GPU: sums come after the backward pass."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.device = device
        self.sent: Counter[str] = Counter()

    def exchange(
        self,
        outgoing: list[Tensor | None],
        channels: dict[str, int],
        *,
        incoming: list[int | None] | None = None,
        ballast: int = 0,
    ) -> "_DistributedTicket":
        """As `testbed.parallel.transport.Transport` says; `ballast` must be 0."""
        assert ballast == 0, "only emulated nodes carry ballast"
        self.sent.update(channels)
        due = [None if m is None else m.numel() for m in outgoing] if incoming is None else incoming
        received = [None if size is None else torch.empty(size, dtype=torch.uint8, device=self.device) for size in due]
        operations = [
            dist.P2POp(dist.irecv, inbox, peer=other)
            for other, inbox in enumerate(received)
            if inbox is not None and inbox.numel()
        ]
        for other, message in enumerate(outgoing):
            if message is not None and message.numel():
                body = message.contiguous().to(self.device)
                operations.append(dist.P2POp(dist.isend, body, peer=other))
        return _DistributedTicket(dist.batch_isend_irecv(operations) if operations else [], received, self.device)

    def overlap(self, wanted: bool) -> None:
        """Transfers always run beside the computation here."""

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


class _DistributedTicket:
    def __init__(self, work: list[dist.Work], received: list[Tensor | None], device: torch.device) -> None:
        self._work, self._received, self._device = work, received, device
        self._posted = time.perf_counter()
        self.seconds = 0.0

    def wait(self) -> list[Tensor | None]:
        for work in self._work:
            work.wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the clock must not run ahead of the device
        self.seconds = time.perf_counter() - self._posted
        return self._received
