"""Keeping the weights together: sums over ranks, the same to the last bit on every rank.

A direct all-reduce in two steps. Each rank owns 1/N of the numbers: it receives that share from every other
rank, sums in rank order (in fp32), and sends the sum to all. Every rank puts 2(N−1)/N of the numbers on the
wire, as a ring does, but in two exchanges instead of 2(N−1), over all the pair links at once. Written as bf16 or
int8 a share is rounded when it leaves and the sum once more; the owner keeps what the others will read.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from testbed.codecs.wire import WireFormat, wire_format
from testbed.parallel.transport import Transport

__all__ = ["all_reduce", "all_reduce_bytes", "average", "flatten", "unflatten"]

_GROUP = 32


def all_reduce(
    numbers: Tensor, transport: Transport, *, wire: str | None = None, channel: str = "weights", ballast: int = 0
) -> Tensor:
    """The sum of (n,) `numbers` over ranks; `wire` None writes them as they are. `ballast` bytes ride along with each
    of the two messages."""
    world, rank = transport.world, transport.rank
    if world == 1:
        return numbers.clone()
    share = _share(numbers.numel(), world, wire)
    padded = torch.nn.functional.pad(numbers, (0, share * world - numbers.numel()))
    mine = padded.view(world, share)
    format_ = None if wire is None else wire_format(wire, _GROUP)
    channels = {channel: all_reduce_bytes(numbers.numel(), world, wire or numbers.element_size()) * (world - 1)}
    outgoing = [_packed(row, format_) if other != rank else None for other, row in enumerate(mine)]
    received = transport.exchange(outgoing, channels, ballast=ballast).wait()
    total = torch.zeros_like(mine[rank])
    for message in received:
        total += mine[rank] if message is None else _unpacked(message, format_, total)
    packed = _packed(total, format_)
    if format_ is not None:
        total = _unpacked(packed, format_, total)
    outgoing = [packed if other != rank else None for other in range(world)]
    received = transport.exchange(outgoing, channels, ballast=ballast).wait()
    sums = [total if message is None else _unpacked(message, format_, total) for message in received]
    return torch.cat(sums)[: numbers.numel()]


def all_reduce_bytes(numbers: int, world: int, wire: str | int) -> int:
    """Bytes that one rank sends to *each* other rank in each of the two steps; `wire` is a format's name or the size
    of an element."""
    if isinstance(wire, int):
        return -(-numbers // world) * wire
    return wire_format(wire, _GROUP).nbytes((_share(numbers, world, wire),))


def average(numbers: Tensor, transport: Transport, *, wire: str | None = None, ballast: int = 0) -> Tensor:
    """The mean of `numbers` over ranks."""
    return all_reduce(numbers, transport, wire=wire, ballast=ballast) / transport.world


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers one behind the other."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def unflatten(numbers: Tensor, tensors: list[Tensor]) -> None:
    """Write `numbers` back into `tensors`."""
    pieces = numbers.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.detach().copy_(piece.view_as(tensor))


def _share(numbers: int, world: int, wire: str | None) -> int:
    """Numbers that each rank sums: whole groups where a group shares a scale."""
    share = -(-numbers // world)
    return share if wire in (None, "fp32", "bf16") else -(-share // _GROUP) * _GROUP


def _packed(numbers: Tensor, format_: WireFormat | None) -> Tensor:
    return numbers.contiguous().view(torch.uint8) if format_ is None else format_.pack(numbers)


def _unpacked(message: Tensor, format_: WireFormat | None, like: Tensor) -> Tensor:
    if format_ is None:
        return message.view(like.dtype).to(like.device)
    return format_.unpack(message, tuple(like.shape)).to(like)
