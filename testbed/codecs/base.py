"""The interface of a codec.

A codec turns a chunk's K and V (before rotation, all heads side by side) into `parts`: the tensors that
travel. It turns parts back into K and V. Everything in between is ordinary autograd: a receiver asks
autograd for the gradient of its loss with respect to the parts it received, sends that back in the same
wire format, and the owner feeds the sum over receivers into its own graph. So the way back is the exact
adjoint of the way out, up to the rounding of the wire format. Parts that choose rather than carry (the
indices of the largest numbers, a basis) have no gradient and nothing of them travels back.

Shape letters: B sequences, T tokens of one chunk, E = d_kv.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from testbed.codecs.wire import WireFormat, wire_format
from testbed.config import CodecConfig
from testbed.errors import UsageError

__all__ = ["Codec", "Codecs", "Direction", "Encoded", "Scale", "Shape", "Wire", "whole"]

Direction = Literal["forward", "backward"]


class Scale(Protocol):
    """How large a model is, and the ranks that codecs have in it: a preset's small model, or a target."""

    @property
    def kv_width(self) -> int:
        """d_kv: numbers in K (or V) of one token, over all heads."""
        ...

    @property
    def subspace_ranks(self) -> tuple[int, int]:
        """r_K, r_V of the paper's codec."""
        ...

    @property
    def latent_rank(self) -> int:
        """r of a latent for K and V together."""
        ...


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
    back: WireFormat | None = None
    """The format of the gradient on its way back; None: the same."""
    returned: bool = True
    """Whether the part has a gradient at all; without one nothing of it travels back."""

    def of(self, direction: Direction) -> WireFormat:
        """The format in a direction."""
        return self.back if direction == "backward" and self.back is not None else self.format

    def nbytes(self, direction: Direction) -> int:
        """Bytes in a direction."""
        return self.of(direction).nbytes(self.shape) if direction == "forward" or self.returned else 0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What `encode` gives back."""

    key_BTE: Tensor
    value_BTE: Tensor
    """What the owner itself uses: exact, or as the others see it."""
    parts: tuple[Tensor, ...]


class Codec(nn.Module, ABC):
    """One layer's codec. Its parameters are trained and synchronised like the model's own."""

    options: ClassVar[frozenset[str]] = frozenset()
    """Fields of the configuration that only some codecs read and this one does."""
    own_chunks: ClassVar[tuple[str, ...]] = ("exact",)
    """How the owner may use its own chunk; the first is the default."""
    token_wise: bool = False
    """Whether every token is encoded on its own, so that a mask-aware exchange may leave some of them out."""

    def __init__(
        self, config: CodecConfig, kv_width: int, *, layer: int, seed: int, kv_heads: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.kv_width = kv_width
        self.layer = layer
        self.seed = seed
        self.kv_heads = kv_heads
        """Of K (and V), for codecs that treat them apart; None: not known."""
        if config.own_chunk not in (None, *self.own_chunks):
            raise UsageError(
                f"the codec '{config.name}' uses its own chunk {' or '.join(self.own_chunks)} only: "
                f"leave own_chunk, which is '{config.own_chunk}'"
            )
        self.own_chunk = config.own_chunk or self.own_chunks[0]

    @classmethod
    def ranks_for(cls, scale: Scale) -> tuple[int, ...] | None:  # noqa: ARG003
        """Its ranks in a model of this scale; () where the size of its messages follows from the width alone.

        A paced run sends what the codec sends at the *target's* scale. None: the codec cannot say, and is not paced.
        """
        return None if "ranks" in cls.options else ()

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

    def kept(self, shape: Shape) -> Tensor | None:  # noqa: ARG002
        """Which tokens of a chunk `decode` gives back, as ascending indices; None: all."""
        return None

    def after_update(self) -> None:
        """Called after every optimiser step and every averaging of the weights; nothing for most."""

    def unplug(self, key: nn.Linear, value: nn.Linear) -> None:  # noqa: ARG002
        """End the compression as the configuration says, at the same step on every node; few codecs can."""
        raise UsageError(f"the codec '{self.config.name}' cannot be unplugged; subspace can")

    def monitor(self) -> dict[str, float | str]:
        """Figures worth a line in the metrics (a basis' departure from orthonormality, its hash)."""
        return {}

    # What follows is the same for every codec.

    def wire(self, *size: int) -> Wire:
        """The wire of numbers of this shape, in the configured formats."""
        back = self.config.wire_backward
        return Wire(
            shape=size,
            format=wire_format(self.config.wire, self.config.group),
            back=None if back is None else wire_format(back, self.config.group),
        )

    def ranks(self, *limits: int) -> tuple[int, ...]:
        """The configured ranks, one for each limit; raises `UsageError` where they are not between 1 and it."""
        given = self.config.ranks
        if len(given) != len(limits) or not all(0 < r <= most for r, most in zip(given, limits, strict=True)):
            count = {1: "one rank", 2: "two ranks, of K and of V,"}[len(limits)]
            raise UsageError(f"{self.config.kind} takes {count} between 1 and {min(limits)}; given {given}")
        return given

    def own_seed(self, which: int = 0) -> int:
        """A seed of this layer's own; a codec may have 64 of them."""
        return (self.seed * 1000 + self.layer) * 64 + which

    def payload(self, shape: Shape, direction: Direction = "forward") -> dict[str, int]:
        """Bytes of one message by channel, in closed form."""
        total: dict[str, int] = {}
        for wire in self.wires(shape):
            total[wire.channel] = total.get(wire.channel, 0) + wire.nbytes(direction)
        return total

    def pack(self, parts: tuple[Tensor | None, ...], shape: Shape, direction: Direction = "forward") -> Tensor:
        """`parts`, or their gradients on the way back (None where there is none), as one message of bytes.

        Raises ValueError where a part is not as long as its wire says.
        """
        packed = []
        for wire, part in zip(self.wires(shape), parts, strict=True):
            if direction == "forward" or wire.returned:
                assert part is not None
                packed.append(wire.of(direction).pack(part))
                if packed[-1].numel() != wire.nbytes(direction):
                    raise ValueError(
                        f"{type(self).__name__} packs a part of shape {tuple(part.shape)} into {packed[-1].numel()} "
                        f"bytes, where its wire of shape {wire.shape} says {wire.nbytes(direction)}"
                    )
        return torch.cat(packed)

    def unpack(
        self, message: Tensor, shape: Shape, like: Tensor, direction: Direction = "forward"
    ) -> tuple[Tensor | None, ...]:
        """The inverse of `pack`: numbers in the dtype of `like`, indices as they are; None for what has no gradient."""
        wires = self.wires(shape)
        pieces = message.split([wire.nbytes(direction) for wire in wires])
        parts: list[Tensor | None] = []
        for wire, piece in zip(wires, pieces, strict=True):
            if direction == "backward" and not wire.returned:
                parts.append(None)
            else:
                part = wire.of(direction).unpack(piece, wire.shape)
                parts.append(part.to(like) if part.is_floating_point() else part.to(like.device))
        return tuple(parts)


class Codecs(nn.ModuleList):
    """A codec for each layer that sends anything."""

    def __iter__(self) -> Iterator[Codec]:
        return cast(Iterator[Codec], super().__iter__())


def whole(parts: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Parts on their way out, of which none is missing."""
    there = tuple(part for part in parts if part is not None)
    assert len(there) == len(parts)
    return there
