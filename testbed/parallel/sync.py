"""Keeping the weights together: sums over ranks, exact and the same to the last bit on every rank.

A direct all-reduce in two steps. Each rank owns 1/N of the numbers: it receives that share from every other
rank, sums in rank order, and sends the sum to all. Every rank puts 2(N−1)/N of the numbers on the wire, as a
ring does, but in two exchanges instead of 2(N−1), over all the pair links at once.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from testbed.parallel.transport import Transport

__all__ = ["all_reduce", "all_reduce_bytes", "average", "flatten", "unflatten"]


def all_reduce(numbers: Tensor, transport: Transport, *, channel: str = "weights", ballast: int = 0) -> Tensor:
    """The sum of (n,) `numbers` over ranks. `ballast` bytes ride along with each of the two messages."""
    world, rank = transport.world, transport.rank
    if world == 1:
        return numbers.clone()
    share = -(-numbers.numel() // world)
    padded = torch.nn.functional.pad(numbers, (0, share * world - numbers.numel()))
    mine = padded.view(world, share)
    nbytes = share * numbers.element_size()
    outgoing = [_bytes(row) if other != rank else None for other, row in enumerate(mine)]
    received = transport.exchange(outgoing, {channel: nbytes * (world - 1)}, ballast=ballast).wait()
    total = torch.zeros_like(mine[rank])
    for message in received:
        total += mine[rank] if message is None else message.view(numbers.dtype).to(numbers.device)
    outgoing = [_bytes(total) if other != rank else None for other in range(world)]
    received = transport.exchange(outgoing, {channel: nbytes * (world - 1)}, ballast=ballast).wait()
    sums = [total if message is None else message.view(numbers.dtype).to(numbers.device) for message in received]
    return torch.cat(sums)[: numbers.numel()]


def all_reduce_bytes(numbers: int, world: int, element_bytes: int) -> int:
    """Bytes that one rank sends to *each* other rank in each of the two steps."""
    return -(-numbers // world) * element_bytes


def average(numbers: Tensor, transport: Transport, *, ballast: int = 0) -> Tensor:
    """The mean of `numbers` over ranks."""
    return all_reduce(numbers, transport, ballast=ballast) / transport.world


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers one behind the other."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def unflatten(numbers: Tensor, tensors: list[Tensor]) -> None:
    """Write `numbers` back into `tensors`."""
    pieces = numbers.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.detach().copy_(piece.view_as(tensor))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
