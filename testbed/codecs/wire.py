"""How numbers are written on the wire, as real bytes.

Floating point travels as it is. Integers travel in groups of neighbouring numbers that share a scale, the
group's largest magnitude / (2^(bits−1) − 1), written as bf16 in front of the codes: bf16 and not fp16, for
gradients are small enough to fall below what fp16 can hold. Four-bit codes are packed two to a byte.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Float", "Integer", "WireFormat", "wire_format"]


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
    """int8 or int4 with a bf16 scale for every `group` numbers along the last dimension."""

    def __init__(self, bits: int, group: int) -> None:
        assert bits in (4, 8)
        self.bits = bits
        self.group = group
        self.largest = 2 ** (bits - 1) - 1

    def _layout(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(numbers after padding the last dimension to whole groups, groups)."""
        rows, width = math.prod(shape[:-1]), shape[-1]
        groups = rows * -(-width // self.group)
        return groups * self.group, groups

    def nbytes(self, shape: tuple[int, ...]) -> int:
        numbers, groups = self._layout(shape)
        return numbers * self.bits // 8 + groups * 2

    def pack(self, tensor: Tensor) -> Tensor:
        padding = -tensor.shape[-1] % self.group
        grouped = torch.nn.functional.pad(tensor.float(), (0, padding)).reshape(-1, self.group)
        scale = (grouped.abs().amax(-1, keepdim=True) / self.largest).to(torch.bfloat16)
        divisor = torch.where(scale == 0, 1.0, scale.float())
        codes = (grouped / divisor).round().clamp(-self.largest, self.largest).to(torch.int8)
        if self.bits == 4:
            low, high = codes.view(-1, 2).unbind(-1)
            packed = (low & 0xF) | (high << 4)
        else:
            packed = codes.view(-1)
        return torch.cat((scale.view(-1).view(torch.uint8), packed.view(torch.uint8)))

    def unpack(self, message: Tensor, shape: tuple[int, ...]) -> Tensor:
        _, groups = self._layout(shape)
        scale = message[: 2 * groups].clone().view(torch.bfloat16).float()
        packed = message[2 * groups :].view(torch.int8)
        if self.bits == 4:
            low, high = (packed << 4) >> 4, packed >> 4  # arithmetic shifts extend the sign
            codes = torch.stack((low, high), dim=-1).view(-1)
        else:
            codes = packed
        numbers = codes.float().view(groups, self.group) * scale.unsqueeze(-1)
        return numbers.view(*shape[:-1], -1)[..., : shape[-1]].contiguous()


def wire_format(name: str, group: int) -> WireFormat:
    """The format called fp64, fp32, bf16, int8 or int4."""
    floats = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
    return Float(floats[name]) if name in floats else Integer(int(name.removeprefix("int")), group)
