"""The gradient all-reduce in buckets that leave as soon as they are full, while the backward pass goes on.

The sums run on connections of their own, in a thread of their own, one bucket after the other in the same order on
every rank. Each number is summed in rank order, as without buckets, so the result is the same to the last bit.
"""

import queue
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from testbed.parallel.sync import all_reduce, all_reduce_bytes, flatten, unflatten
from testbed.parallel.transport import Transport

__all__ = ["Buckets"]

_NUMBERS = 1 << 20


class Buckets:
    """The gradients of `parameters`, cut into buckets in the order in which a backward pass gives them."""

    def __init__(self, parameters: Sequence[Tensor], transport: Transport, *, wire: str | None = None) -> None:
        self._transport, self._wire = transport, wire
        self.buckets: list[list[Tensor]] = [[]]
        for parameter in reversed(parameters):
            if self.buckets[-1] and sum(p.numel() for p in self.buckets[-1]) + parameter.numel() > _NUMBERS:
                self.buckets.append([])
            self.buckets[-1].append(parameter)
        self._bucket_of = {id(p): i for i, bucket in enumerate(self.buckets) for p in bucket}
        self._missing: list[int] = []
        self._next = len(self.buckets)
        self._full: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._arrived) for parameter in parameters]
        threading.Thread(target=self._run, args=(torch.get_num_threads(),), name="buckets", daemon=True).start()

    def message_bytes(self) -> list[int]:
        """Bytes to each other rank in each of the two steps, by bucket."""
        wire = self._wire or self.buckets[0][0].element_size()
        return [all_reduce_bytes(sum(p.numel() for p in b), self._transport.world, wire) for b in self.buckets]

    def begin(self) -> None:
        """The next backward pass is the last before the update: its gradients are to be summed."""
        self._missing = [len(bucket) for bucket in self.buckets]
        self._next = 0

    def finish(self) -> None:
        """Wait until every gradient is the sum over ranks; those that the pass did not reach count as zero."""
        while self._next < len(self.buckets):
            self._full.put(self._next)
            self._next += 1
        for _ in self.buckets:
            self._done.acquire()
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """No more sums."""
        self._full.put(None)
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, parameter: Tensor) -> None:
        if self._next >= len(self.buckets):
            return
        self._missing[self._bucket_of[id(parameter)]] -= 1
        while self._next < len(self.buckets) and self._missing[self._next] <= 0:  # in order, on every rank
            self._full.put(self._next)
            self._next += 1

    def _run(self, compute_threads: int) -> None:
        torch.set_num_threads(compute_threads)  # a new thread would take every core
        while (number := self._full.get()) is not None:
            try:
                gradients = [_gradient(parameter) for parameter in self.buckets[number]]
                unflatten(all_reduce(flatten(gradients), self._transport, wire=self._wire), gradients)
            except BaseException as error:
                self._error = error
                self._done.release()
                return
            self._done.release()


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
