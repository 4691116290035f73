"""The interface of a codec.

A codec turns a chunk's K and V (before rotation, all heads side by side) into `parts`: the tensors that
travel. It turns parts back into K and V. Everything in between is ordinary autograd: a receiver asks
autograd for the gradient of its loss with respect to the parts it received, sends that back in the same
wire format, and the owner feeds the sum over receivers into its own graph. So the way back is the exact
adjoint of the way out, up to the rounding of the wire format.

Shape letters: B sequences, T tokens of one chunk, E = d_kv.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from testbed.codecs.wire import WireFormat
from testbed.config import CodecConfig

__all__ = ["Codec", "Encoded", "Shape", "Wire"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How much one node encodes at once."""

    batch: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How one part travels."""

    shape: tuple[int, ...]
    format: WireFormat
    channel: str = "kv"
    """`kv` is counted as kv_forward or kv_backward by direction; anything else under its own name."""

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(self.shape)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What `encode` gives back."""

    key_BTE: Tensor
    value_BTE: Tensor
    """What the owner itself uses: exact, or as the others see it."""
    parts: tuple[Tensor, ...]


class Codec(nn.Module, ABC):
    """One layer's codec. Its parameters are trained and synchronised like the model's own."""

    def __init__(self, config: CodecConfig, kv_width: int, *, layer: int, seed: int) -> None:
        super().__init__()
        self.config = config
        self.kv_width = kv_width
        self.layer = layer
        self.seed = seed

    def start(self, key: nn.Linear, value: nn.Linear, kv_NF: Tensor) -> None:
        """Choose the starting state from the warm-started weights and activations (N tokens, F = 2·d_kv)."""

    @abstractmethod
    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        """How the parts of a chunk of this shape travel. Bytes follow from it in closed form."""

    @abstractmethod
    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        """What the owner uses and what it sends."""

    @abstractmethod
    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(key_BTE, value_BTE) as a receiver sees them. `decoder` is what `decoder_parameters` returned."""

    def decoder_parameters(self) -> tuple[Tensor, ...]:
        """Trained tensors that `decode` uses: receivers' losses reach them too."""
        return ()

    def encode_flops(self, tokens: int) -> float:  # noqa: ARG002
        """Floating point operations that encoding `tokens` adds to a forward pass."""
        return 0.0

    def decode_flops(self, tokens: int) -> float:  # noqa: ARG002
        """Floating point operations that decoding `tokens` adds to a forward pass."""
        return 0.0

    # What follows is the same for every codec.

    def payload(self, shape: Shape) -> dict[str, int]:
        """Bytes of one message by channel, in closed form."""
        total: dict[str, int] = {}
        for wire in self.wires(shape):
            total[wire.channel] = total.get(wire.channel, 0) + wire.nbytes
        return total

    def pack(self, parts: tuple[Tensor, ...], shape: Shape) -> Tensor:
        """`parts` (or their gradients) as one message of bytes."""
        wires = self.wires(shape)
        packed = [wire.format.pack(part) for wire, part in zip(wires, parts, strict=True)]
        for wire, message in zip(wires, packed, strict=True):
            assert message.numel() == wire.nbytes, (type(self).__name__, message.numel(), wire)
        return torch.cat(packed)

    def unpack(self, message: Tensor, shape: Shape, like: Tensor) -> tuple[Tensor, ...]:
        """The inverse of `pack`, in the dtype of `like`."""
        wires = self.wires(shape)
        pieces = message.split([wire.nbytes for wire in wires])
        return tuple(wire.format.unpack(piece, wire.shape).to(like) for wire, piece in zip(wires, pieces, strict=True))
