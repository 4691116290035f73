"""How numbers are written on the wire, as real bytes.

Floating point travels as it is. Integers travel in groups of neighbouring numbers that share a scale, the
group's largest magnitude / (2^(bits−1) − 1), written as bf16 in front of the codes: bf16 and not fp16, for
gradients are small enough to fall below what fp16 can hold. Four-bit codes are packed two to a byte.
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Float", "Indices", "Integer", "WireFormat", "wire_format"]


class WireFormat(Protocol):
    """Tensors to bytes and back."""

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes that a tensor of this shape takes, in closed form."""
        ...

    def pack(self, tensor: Tensor) -> Tensor:
        """(nbytes,) uint8."""
        ...

    def unpack(self, message: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor, with what rounding has done to it."""
        ...


class Float:
    """fp64, fp32 or bf16."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self.dtype.itemsize

    def pack(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).contiguous().view(-1).view(torch.uint8)

    def unpack(self, message: Tensor, shape: tuple[int, ...]) -> Tensor:
        return message.clone().view(self.dtype).view(shape)


class Integer:
    """int8 or int4 with a bf16 scale for every `group` numbers of the last dimension; the last group may be short."""

    def __init__(self, bits: int, group: int) -> None:
        assert bits in (4, 8)
        self.bits = bits
        self.group = group
        self.largest = 2 ** (bits - 1) - 1

    def _layout(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(rows, groups in a row, bytes of codes in a row)."""
        width = shape[-1]
        return math.prod(shape[:-1]), -(-width // self.group), -(-width * self.bits // 8)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        rows, groups, codes = self._layout(shape)
        return rows * (2 * groups + codes)

    def pack(self, tensor: Tensor) -> Tensor:
        width = tensor.shape[-1]
        padded = F.pad(tensor.float(), (0, -width % self.group))
        grouped = padded.reshape(-1, padded.shape[-1] // self.group, self.group)
        scale = (grouped.abs().amax(-1, keepdim=True) / self.largest).to(torch.bfloat16)
        divisor = torch.where(scale == 0, 1.0, scale.float())
        codes = (grouped / divisor).round_().clamp_(-self.largest, self.largest).to(torch.int8)
        codes = codes.flatten(1)[:, :width]
        if self.bits == 4:
            low, high = F.pad(codes, (0, width % 2)).unflatten(1, (-1, 2)).unbind(-1)
            codes = (low & 0xF) | (high << 4)
        return torch.cat((scale.view(-1).view(torch.uint8), codes.reshape(-1).view(torch.uint8)))

    def unpack(self, message: Tensor, shape: tuple[int, ...]) -> Tensor:
        rows, groups, width_in_bytes = self._layout(shape)
        width = shape[-1]
        scale = message[: 2 * rows * groups].clone().view(torch.bfloat16).float().view(rows, groups, 1)
        codes = message[2 * rows * groups :].view(torch.int8).view(rows, width_in_bytes)
        if self.bits == 4:
            low, high = (codes << 4) >> 4, codes >> 4  # arithmetic shifts extend the sign
            codes = torch.stack((low, high), dim=-1).flatten(1)[:, :width]
        grouped = F.pad(codes.float(), (0, -width % self.group)).view(rows, groups, self.group)
        return (grouped * scale).flatten(1)[:, :width].reshape(shape)


class Indices:
    """Ascending places in a row of `width`: in 8 or 16 bits each, or as a row of `width` bits, whichever is least."""

    def __init__(self, width: int) -> None:
        assert width <= 2**16, width
        self.width = width
        self.item = 1 if width <= 2**8 else 2

    def _masked(self, shape: tuple[int, ...]) -> bool:
        return -(-self.width // 8) < shape[-1] * self.item

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[:-1]) * min(shape[-1] * self.item, -(-self.width // 8))

    def pack(self, tensor: Tensor) -> Tensor:
        if not self._masked(tuple(tensor.shape)):
            kind = torch.uint8 if self.item == 1 else torch.int16  # int16 for its bits: torch has few uint16 kernels
            return tensor.to(kind).contiguous().view(-1).view(torch.uint8)
        chosen = torch.zeros(*tensor.shape[:-1], self.width + -self.width % 8, dtype=torch.uint8, device=tensor.device)
        chosen.scatter_(-1, tensor, 1)
        weights = 2 ** torch.arange(8, dtype=torch.uint8, device=tensor.device)
        return (chosen.view(-1, 8) * weights).sum(-1, dtype=torch.uint8)

    def unpack(self, message: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not self._masked(shape):
            kind = torch.uint8 if self.item == 1 else torch.int16
            return (message.clone().view(kind).to(torch.int64) & 0xFFFF).view(shape)
        weights = 2 ** torch.arange(8, dtype=torch.uint8, device=message.device)
        chosen = (message[:, None] & weights).bool().view(math.prod(shape[:-1]), -1)
        return chosen.nonzero()[:, 1].view(shape)


def wire_format(name: str | None, group: int) -> WireFormat:
    """The format called fp64, fp32, bf16, int8 or int4 (`CodecConfig.wire`, which is never None once made)."""
    assert name is not None
    floats = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
    return Float(floats[name]) if name in floats else Integer(int(name.removeprefix("int")), group)
