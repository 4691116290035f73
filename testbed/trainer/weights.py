"""Keeping the replicas together: gradients summed every step, or weights averaged now and then.

Averaging may write numbers more coarsely than fp32; then differences to what all ranks last agreed on travel, not
weights. With outer momentum the mean difference is a gradient for Nesterov's method (DiLoCo, Douillard et al. 2023,
arXiv 2311.08105): g = agreed − mean,  m ← μ m + g,  agreed ← agreed − η (g + μ m).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from testbed.config import Arm
from testbed.parallel.buckets import Buckets
from testbed.parallel.sync import all_reduce, all_reduce_bytes, average, flatten, unflatten
from testbed.parallel.transport import Transport

__all__ = ["Weights"]

_ATTENTION = ("query", "key", "value", "output")


class Weights:
    """The parameters of one rank, and how they are kept with the others'."""

    def __init__(self, named: Mapping[str, Tensor], arm: Arm, transport: Transport) -> None:
        self._transport, self._settings = transport, arm.weights
        self._wire = None if arm.weights.wire == "fp32" else arm.weights.wire
        self.parameters = list(named.values())
        self.averaged = [
            tensor
            for name, tensor in named.items()
            if arm.weights.scope == "all" or name.startswith("codecs.") or name.split(".")[-2] in _ATTENTION
        ]
        self.overlapped = arm.sync == "gradients" and arm.overlap and transport.world > 1 and transport.lanes
        lane = transport.lane() if self.overlapped else None  # pyrefly: ignore
        self._buckets = None if lane is None else Buckets(self.parameters, lane, wire=self._wire)
        self.drift: float | None = None
        """‖w − mean‖ / ‖mean‖ of this replica at the last averaging."""
        self.agreed: Tensor | None = None
        """What all ranks held after the last averaging, where differences to it travel."""
        self.momentum: Tensor | None = None
        if arm.sync == "average" and (self._wire is not None or arm.weights.outer_momentum or self._outer_rate != 1):
            self.agreed = flatten(self.averaged)
        if arm.weights.outer_momentum:
            self.momentum = torch.zeros_like(flatten(self.averaged))

    @property
    def _outer_rate(self) -> float:
        return self._settings.outer_learning_rate

    @property
    def message_bytes(self) -> int:
        """Bytes to each other rank in each of the two messages of a synchronisation that is not cut into buckets."""
        numbers = sum(tensor.numel() for tensor in self.averaged)
        return all_reduce_bytes(numbers, self._transport.world, self._wire or self.parameters[0].element_size())

    def gradient_messages(self, *, overlapped: bool) -> list[int]:
        """Bytes of each message of the gradients' all-reduce, one per bucket."""
        return self._buckets.message_bytes() if self._buckets and overlapped else [self.message_bytes]

    def begin(self) -> None:
        """The next backward pass gives the gradients that are to be summed."""
        if self._buckets is not None:
            self._buckets.begin()

    def sum_gradients(self, *, begun: bool, ballast: int = 0) -> None:
        """Every gradient becomes the sum over ranks."""
        if begun and self._buckets is not None:
            self._buckets.finish()
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        unflatten(all_reduce(flatten(gradients), self._transport, wire=self._wire, ballast=ballast), gradients)

    def average(self, *, ballast: int = 0) -> None:
        """The averaged weights become the same on every rank."""
        own, moved = flatten(self.averaged), None
        if self.agreed is None:
            mean = average(own, self._transport, ballast=ballast)
        else:
            moved = average(own - self.agreed, self._transport, wire=self._wire, ballast=ballast)
            mean = self.agreed + moved
        self.drift = float((own - mean).norm() / mean.norm())
        unflatten(mean if moved is None else self._outer_step(moved), self.averaged)

    def _outer_step(self, moved: Tensor) -> Tensor:
        """What the ranks agree on next, given how far they moved on average."""
        assert self.agreed is not None
        step = moved
        if self.momentum is not None:
            self.momentum = self._settings.outer_momentum * self.momentum + moved
            step = moved + self._settings.outer_momentum * self.momentum
        self.agreed = self.agreed + self._outer_rate * step
        return self.agreed

    def close(self) -> None:
        """No more synchronisation."""
        if self._buckets is not None:
            self._buckets.close()
