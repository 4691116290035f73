"""The same exchanges through `torch.distributed`: NCCL between real machines, or gloo.

Started by torchrun. On GPUs messages stay on the device. There is no ballast: real machines have their own size.
"""

from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Distributed"]


class Distributed:
    """Direct sends and receives over the default process group, receives posted first."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.device = device
        self.sent: Counter[str] = Counter()

    def exchange(
        self, outgoing: list[Tensor | None], channels: dict[str, int], *, ballast: int = 0
    ) -> "_DistributedTicket":
        """As `testbed.parallel.transport.Transport` says; `ballast` must be 0."""
        assert ballast == 0, "only emulated nodes carry ballast"
        others = [other for other in range(self.world) if other != self.rank]
        for channel, nbytes in channels.items():
            self.sent[channel] += nbytes * len(others)
        received: list[Tensor | None] = [None] * self.world
        operations = []
        for other in others:
            message = outgoing[other]
            assert message is not None
            inbox = received[other] = torch.empty_like(message, device=self.device)
            operations.append(dist.P2POp(dist.irecv, inbox, other))
        for other in others:
            message = outgoing[other]
            assert message is not None
            operations.append(dist.P2POp(dist.isend, message.contiguous().to(self.device), other))
        return _DistributedTicket(dist.batch_isend_irecv(operations) if operations else [], received, self.device)

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


class _DistributedTicket:
    def __init__(self, work: list[dist.Work], received: list[Tensor | None], device: torch.device) -> None:
        self._work, self._received, self._device = work, received, device

    def wait(self) -> list[Tensor | None]:
        for work in self._work:
            work.wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the clock must not run ahead of the device
        return self._received
