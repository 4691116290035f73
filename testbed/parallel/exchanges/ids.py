"""A null: token ids travel, and every rank makes the others' K and V of the first layers itself, from its own weights.

In a model of this kind the first layer's K and V are a function of the token's id, so whoever has the ids has them
exactly, for two bytes a token and nothing on the way back. Deeper layers can be made too, as far as a token's K and V
follow from the few tokens before it: `ids(k, w)` makes those of layers 0 to k, where a token attends only to the w
tokens before it within its chunk. What lies deeper is not exchanged. A task that this solves does not ask for what a
codec of K and V compresses.

Gradients flow through what is made into the maker's own weights. `made_flops` says what that computes, and a paced step
is charged for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from testbed.codecs import Direction
from testbed.config import Model
from testbed.config.arm import IdsConfig
from testbed.parallel.attention import rotary_tables, rotate
from testbed.parallel.exchanges.base import Alone, Exchange, Traffic, at_least_fp32, flat_heads
from testbed.parallel.exchanges.local import pace_point
from testbed.parallel.layout import Layout
from testbed.parallel.transport import Transport

if TYPE_CHECKING:
    from testbed.model import Decoder

__all__ = ["ID_BYTES", "Ids", "made_flops"]

ID_BYTES = 2
"""Of a token id (`testbed.config.data.MAX_VOCABULARY`)."""


class Sizes(Protocol):
    """Of a model, or of a target's."""

    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def kv_width(self) -> int: ...
    @property
    def ffn(self) -> int: ...


class Ids(Exchange):
    """Sends ids before the first layer; layers 0 to k attend to what is made of them as well."""

    def __init__(
        self, model: Model, ids: IdsConfig, transport: Transport | Alone | None = None, *, layout: Layout
    ) -> None:
        super().__init__(model, [], transport, layout=layout)
        self.layers = ids.depth(model.layers)
        self.window = ids.window
        self._made: list[tuple[Tensor, Tensor]] = []
        """Of each of these layers: rotated K and V of the chunks that may be seen, (B, G, S, D)."""
        self._there = torch.zeros(0, dtype=torch.long)
        """Their places in the sequence, (S,)."""

    def traffic(self, layer: int, direction: Direction, batch: int, context: int) -> Traffic:
        sent, others = Traffic(), self.layout.world - 1
        if layer == 0 and direction == "forward" and others:
            sent.add({"kv": ID_BYTES * batch * (context // self.layout.world)}, direction, others)
        return sent

    def read(self, decoder: "Decoder", tokens_BT: Tensor) -> None:
        """Exchange ids, and make K and V of what the others hold."""
        context = self.context(tokens_BT.shape[1])
        size, last = context // (self.layout.per_rank * self.layout.world), max(self.layout.chunks(self.rank))
        chunks: dict[int, Tensor] = {}
        for rank, theirs in enumerate(self._exchanged(tokens_BT)):
            if theirs is not None:
                chunks |= zip(self.layout.chunks(rank), theirs.split(size, 1), strict=True)
        seen = sorted(chunk for chunk in chunks if chunk < last)
        self._made = []
        if seen:
            places = torch.stack([torch.arange(chunk * size, (chunk + 1) * size) for chunk in seen])
            self._there = places.flatten()
            self._make(decoder, torch.stack([chunks[chunk] for chunk in seen], dim=1), places)

    def _exchanged(self, tokens_BT: Tensor) -> list[Tensor | None]:
        """The other ranks' tokens, (B, T) each; None in this rank's place."""
        message = tokens_BT.to(torch.int16).contiguous().view(torch.uint8).flatten()
        world = self.layout.world
        outgoing = [None if rank == self.rank else message for rank in range(world)]
        sizes = [None if rank == self.rank else message.numel() for rank in range(world)]
        if world == 1:
            return [None]
        ballast = self.pacer.first_ballast(message.numel())
        ticket = self.transport.exchange(
            outgoing, {"kv_forward": message.numel() * (world - 1)}, incoming=sizes, ballast=ballast
        )
        found = [
            None if came is None else (came.to(tokens_BT.device).view(torch.int16).long() & 0xFFFF).view_as(tokens_BT)
            for came in self.wait(ticket)
        ]
        self.pacer.after_first()
        return found

    def _make(self, decoder: "Decoder", tokens_BNt: Tensor, places_Nt: Tensor) -> None:
        """Every chunk as a row of its own, through the first layers."""
        batch, count, size = tokens_BNt.shape
        visible = _window(size, self.window).to(tokens_BNt.device)
        if self.documents is not None:
            documents = self.documents.to(tokens_BNt.device)[:, places_Nt]
            visible = (visible & (documents[..., :, None] == documents[..., None, :])).flatten(0, 1).unsqueeze(1)
        tables = rotary_tables(
            torch.arange(size), self.model.head_width, self.model.rope_base, decoder.embedding.weight
        )
        x = decoder.embedding(tokens_BNt.flatten(0, 1))
        for number in range(self.layers):
            layer: Any = decoder.layers[number]
            q, k, v = (at_least_fp32(each) for each in layer.project(x))
            whole = [each.unflatten(0, (batch, count)).flatten(1, 2) for each in (k, v)]  # (B, N·t, E)
            self._made.append((self.rotated(whole[0], self._there), self.heads(whole[1])))
            if number + 1 < self.layers:
                q, k = (rotate(self.heads(each), tables) for each in (q, k))
                x = layer.feed_forward(x, flat_heads(_attention(q, k, self.heads(v), visible)).to(x.dtype))

    def _begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        q_BTC = pace_point(q_BTC, self.pacer, layer)
        here = self.layout.positions(self.rank, self.context(q_BTC.shape[1]))
        q, k, v, there = self.rotated(q_BTC), self.rotated(k_BTE), self.heads(v_BTE), here
        if layer < len(self._made):
            made = self._made[layer]
            k, v = (torch.cat((far.to(own.dtype), own), dim=2) for far, own in zip(made, (k, v), strict=True))
            there = torch.cat((self._there, here))
        visible = there[None, :] <= here[:, None]
        if self.documents is not None:
            visible = (visible & (self.documents[:, here, None] == self.documents[:, None, there])).unsqueeze(1)
        return lambda: flat_heads(_attention(q, k, v, visible.to(q.device)))


def made_flops(model: Sizes, ids: IdsConfig, tokens: int) -> float:
    """Forward floating point operations by which one rank makes K and V of another's chunk of `tokens` tokens.

    2 for each weight that is met (all of a layer's but for the deepest, of which K's and V's projections suffice), and
    4·C for each pair of tokens: at most w + 1 a token, or half of the chunk in the mean.
    """
    depth = ids.depth(model.layers)
    keys = 4.0 * model.width * model.kv_width
    whole = keys + 4.0 * model.width**2 + 6.0 * model.width * model.ffn
    half = (tokens + 1) / 2
    pairs = half if ids.window == "chunk" else min(ids.window + 1, half)
    return tokens * (keys + (depth - 1) * (whole + 4.0 * model.width * pairs))


def _window(size: int, window: Any) -> Tensor:
    """(t, t): which tokens of a chunk each of its tokens sees."""
    back = torch.arange(size)[:, None] - torch.arange(size)[None, :]
    return (back >= 0) & (back <= (size if window == "chunk" else window))


def _attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
