"""What every exchange is made of.

Shape letters: B sequences, T tokens of this rank, C model width, E = d_kv, H query heads, G K/V heads, D head width.
"""

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from testbed.codecs import Codec, Direction
from testbed.collector.trace import current as trace
from testbed.collector.trace import span
from testbed.config import Model
from testbed.parallel.attention import rotary_tables, rotate, split_heads
from testbed.parallel.block_masks import Sight
from testbed.parallel.layout import Layout
from testbed.parallel.transport import Ticket, Transport

__all__ = ["Alone", "Exchange", "Pacer", "Traffic", "Unpaced", "at_least_fp32", "flat_heads", "joined"]


class Pacer(Protocol):
    """What holds a rank to the time and size of the node it stands for (`testbed.pace`)."""

    def before_exchange(self, direction: Direction, layer: int) -> None:
        """Called when the computation up to an exchange is done."""
        ...

    def ballast(self, direction: Direction, payload: int) -> int:
        """Bytes to add to a K/V message of `payload` bytes."""
        ...

    def after_exchange(self, direction: Direction, layer: int) -> None:
        """Called when an exchange has ended."""
        ...

    def first_ballast(self, payload: int) -> int:
        """Bytes to add to a message of `payload` bytes that is sent before the first layer."""
        ...

    def after_first(self) -> None:
        """Called when such messages have come."""
        ...


class Unpaced:
    """The machine's own speed and sizes."""

    def before_exchange(self, direction: Direction, layer: int) -> None:
        """Nothing to wait for."""

    def ballast(self, direction: Direction, payload: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def after_exchange(self, direction: Direction, layer: int) -> None:
        """Nothing to wait for."""

    def first_ballast(self, payload: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def after_first(self) -> None:
        """Nothing to wait for."""


@dataclass
class Traffic:
    """What one rank puts on the wire, in closed form."""

    payload: Counter[str] = field(default_factory=Counter)
    """Bytes by channel."""
    messages: int = 0

    def add(self, payload: dict[str, int], direction: Direction, messages: int = 1) -> None:
        """`messages` more messages of this payload each; the channel `kv` is counted by direction."""
        for channel, count in payload.items():
            self.payload[f"kv_{direction}" if channel == "kv" else channel] += count * messages
        self.messages += messages


@dataclass
class Alone:
    """A place among ranks without any connection to them."""

    rank: int = 0
    world: int = 1


class Exchange(ABC):
    """How K and V, or what stands for them, reach the other ranks.

    `attend` is `begin` and `finish` in one. Between the two, another sequence's computation may hide the exchange.
    Whatever it sends to whom, every query sees every token before it: validation computes as if all were there.
    """

    begins_early = False
    """Whether everything that travels does so before attention begins, so that two halves of a batch can take turns."""
    bytes_follow_documents = False
    """Whether what it sends depends on where the batch's documents begin."""

    def __init__(
        self,
        model: Model,
        codecs: Sequence[Codec] = (),
        transport: Transport | Alone | None = None,
        *,
        layout: Layout | None = None,
        pacer: Pacer | None = None,
        overlap: bool = True,
    ) -> None:
        self.model = model
        self.codecs = codecs
        self.transport: Any = transport or Alone()
        self.layout = layout or Layout("contiguous", self.transport.world)
        self.rank = self.transport.rank
        self.pacer = pacer or Unpaced()
        self.overlap = overlap
        self.documents: Tensor | None = None
        self._shared: dict[Any, Any] = {}
        """Rotary tables, the same for every sequence and step."""
        self._sights: dict[int, Sight] = {}

    def on(self, documents_BT: Tensor | None) -> Self:
        """This exchange for a batch whose tokens (the whole sequence's) see their own document only; None: all."""
        mine = copy.copy(self)
        mine.documents, mine._sights = documents_BT, {}
        return mine

    @abstractmethod
    def traffic(self, layer: int, direction: Direction, batch: int, context: int) -> Traffic:
        """What a layer's exchange of `batch` sequences of `context` tokens sends from this rank."""

    @abstractmethod
    def _begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        """What `begin` does, in full precision."""

    def read(self, decoder: Any, tokens_BT: Tensor) -> None:  # noqa: B027 (most have no use for it)
        """Called with a batch's tokens before the first layer."""

    def begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        """Post what travels; the callable waits for it and gives attention, (B, T, C).

        Codecs, softmaxes and sums over blocks and ranks are computed in fp32 whatever autocast says: the denominators
        that blocks are merged by, and θ, do not survive bf16.
        """
        with _full(q_BTC):
            finish = self._begin(layer, *(at_least_fp32(x) for x in (q_BTC, k_BTE, v_BTE)))

        def finished() -> Tensor:
            with _full(q_BTC):
                return finish().to(q_BTC.dtype)

        return finished

    def attend(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Tensor:
        """Attention of this rank's queries over every token before them: (B, T, C)."""
        return self.begin(layer, q_BTC, k_BTE, v_BTE)()

    # What they share.

    def context(self, tokens: int) -> int:
        """Length of the sequence of which this rank holds `tokens`."""
        return tokens * self.layout.world

    def sight(self, context: int) -> Sight:
        """What this rank's queries see of the batch."""
        if context not in self._sights:
            self._sights[context] = Sight(self.layout, self.rank, context, self.documents)
        return self._sights[context]

    def heads(self, x_BTE: Tensor) -> Tensor:
        """(B, T, heads·D) to (B, heads, T, D)."""
        return split_heads(x_BTE, self.model.head_width)

    def rotated(self, x_BTE: Tensor, positions: Tensor | None = None) -> Tensor:
        """Heads of x, rotated to `positions` (T,), by default those of this rank's tokens."""
        tokens = x_BTE.shape[1]
        if positions is None:
            positions = self.layout.positions(self.rank, self.context(tokens))
        known = (positions.numpy().tobytes(), x_BTE.dtype, x_BTE.device)
        if known not in self._shared:
            self._shared[known] = rotary_tables(positions, self.model.head_width, self.model.rope_base, x_BTE)
        return rotate(self.heads(x_BTE), self._shared[known])

    def wait(self, ticket: Ticket) -> list[Tensor | None]:
        """The messages of an exchange; only what is waited for here is time that the exchange costs."""
        with span("exchange"):
            messages = ticket.wait()
        trace.seconds["exchange_total"] = trace.seconds.get("exchange_total", 0.0) + ticket.seconds
        return messages


def _full(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def joined(out_BHTD: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Own chunks' (out, lse) side by side, in the order in which the rank holds them."""
    if len(out_BHTD) == 1:
        return out_BHTD[0]
    return torch.cat([out for out, _ in out_BHTD], dim=2), torch.cat([lse for _, lse in out_BHTD], dim=2)


def flat_heads(out_BHTD: Tensor) -> Tensor:
    """(B, heads, T, D) to (B, T, heads·D)."""
    return out_BHTD.transpose(1, 2).flatten(2)
