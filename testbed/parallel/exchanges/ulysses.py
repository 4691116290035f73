"""All-to-all over heads (Jacobs et al. 2023, DeepSpeed-Ulysses, arXiv 2309.14509).

Every rank trades its tokens of all heads for all tokens of its heads, computes plain attention, and trades back. Per
layer and direction a rank sends (N−1)/N of its tokens' q, k, v and outputs: n_i·(2d + 2d_kv)·(N−1)/N numbers in 2(N−1)
messages, four times fewer than an all-gather at N = 8 with as many K/V heads as query heads. Exact; nothing but the
number format can be traded for bytes, so it takes no codec but `exact`.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from testbed.codecs import Direction
from testbed.codecs.wire import WireFormat, wire_format
from testbed.errors import UsageError
from testbed.parallel.attention import Mask, block_attention, block_attention_backward
from testbed.parallel.autograd import Context, operation
from testbed.parallel.exchanges.base import Exchange, Traffic, flat_heads

__all__ = ["Ulysses"]


class Ulysses(Exchange):
    """Tokens of all heads against all tokens of some heads."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._masks: dict[int, Tensor] = {}
        heads, kv_heads, world = self.model.heads, self.model.kv_heads, self.layout.world
        if heads % world or kv_heads % world:
            raise UsageError(
                f"ulysses shares heads among ranks: {heads} query and {kv_heads} K/V heads do not divide by {world} "
                "ranks; choose a number of ranks that divides both, or another exchange"
            )
        for codec in self.codecs:
            if codec.config.kind not in ("exact", "int8", "int4"):
                raise UsageError(
                    "ulysses trades whole q, k and v, which only a number format can make smaller: it takes the codec "
                    f"exact, int8 or int4, not '{codec.config.name}'"
                )
            if codec.config.hadamard:
                raise UsageError("ulysses writes q, k and v as they are: leave hadamard, or use all-gather")

    def format(self, layer: int, direction: Direction) -> WireFormat:
        """How a layer's numbers are written."""
        config = self.codecs[layer].config
        back = config.wire_backward if direction == "backward" else None
        return wire_format(back or config.wire, config.group)

    def traffic(self, layer: int, direction: Direction, batch: int, context: int) -> Traffic:
        sent, world, format_ = Traffic(), self.layout.world, self.format(layer, direction)
        size = (batch, 1, context // world, self.model.head_width)
        trio, out = (self.model.heads + 2 * self.model.kv_heads) // world, self.model.heads // world
        for heads in (trio, out):
            count = sum(format_.nbytes(size) for _ in range(heads))
            sent.add({"kv": count}, direction, world - 1)
        return sent

    def _begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        q, k, v = self.rotated(q_BTC), self.rotated(k_BTE), self.heads(v_BTE)
        return lambda: flat_heads(_traded(self, layer, q, k, v))

    def on(self, documents_BT: Tensor | None) -> Self:
        mine = super().on(documents_BT)
        mine._masks = {}
        return mine

    def mask(self, context: int, like: Tensor) -> Mask:
        """Of whole sequences: causal, and by document where there are documents."""
        if self.documents is None:
            return True
        if context not in self._masks:
            visible = self.documents[:, :, None] == self.documents[:, None, :]
            visible &= torch.ones(context, context, dtype=torch.bool).tril()
            mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
            self._masks[context] = mask.masked_fill(~visible.to(like.device), -torch.inf).unsqueeze(1)
        return self._masks[context]

    def trade(
        self, layer: int, direction: Direction, for_peer: list[list[Tensor]], shapes: list[tuple[int, ...]]
    ) -> list[Any]:
        """Each rank's tensors for this one, in rank order; our own are not rounded. `shapes` are those that come."""
        format_, world = self.format(layer, direction), self.layout.world
        outgoing = [
            None if peer == self.rank else torch.cat([format_.pack(tensor) for tensor in tensors])
            for peer, tensors in enumerate(for_peer)
        ]
        sizes = [format_.nbytes(shape) for shape in shapes]
        sent = Traffic()
        sent.add({"kv": sum(message.numel() for message in outgoing if message is not None)}, direction)
        incoming = [None if peer == self.rank else sum(sizes) for peer in range(world)]
        messages: list[Tensor | None] = [None]
        if world > 1:
            messages = self.wait(self.transport.exchange(outgoing, sent.payload, incoming=incoming))
        return [
            for_peer[peer]
            if message is None
            else [
                format_.unpack(piece, shape).to(for_peer[self.rank][0])
                for piece, shape in zip(message.split(sizes), shapes, strict=True)
            ]
            for peer, message in enumerate(messages)
        ]

    def order(self, context: int) -> tuple[Tensor, Tensor]:
        """(where in rank order each token of the sequence stands, and the inverse)."""
        by_rank = torch.cat([self.layout.positions(rank, context) for rank in range(self.layout.world)])
        return by_rank.argsort(), by_rank

    def to_heads(self, layer: int, direction: Direction, tensors: list[Tensor]) -> list[Tensor]:
        """Own tokens of all heads to all tokens, in order, of own heads: (B, heads/N, T·N, D) each."""
        world = self.layout.world
        cut = [tensor.chunk(world, dim=1) for tensor in tensors]
        for_peer = [[one[peer] for one in cut] for peer in range(world)]
        traded = self.trade(layer, direction, for_peer, [tuple(one[0].shape) for one in cut])
        order, _ = self.order(self.context(tensors[0].shape[2]))
        return [torch.cat([pieces[i] for pieces in traded], dim=2)[:, :, order] for i in range(len(tensors))]

    def to_tokens(self, layer: int, direction: Direction, tensors: list[Tensor]) -> list[Tensor]:
        """The inverse of `to_heads`."""
        world, context = self.layout.world, tensors[0].shape[2]
        _, by_rank = self.order(context)
        cut = [tensor[:, :, by_rank].chunk(world, dim=2) for tensor in tensors]
        for_peer = [[one[peer] for one in cut] for peer in range(world)]
        traded = self.trade(layer, direction, for_peer, [tuple(one[0].shape) for one in cut])
        return [torch.cat([pieces[i] for pieces in traded], dim=1) for i in range(len(tensors))]


class _TradedContext(Context):
    exchange: Ulysses
    layer: int
    mask: Mask


class _Traded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _TradedContext, exchange: Ulysses, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        exchange.pacer.before_exchange("forward", layer)
        q, k, v = exchange.to_heads(layer, "forward", [q, k, v])
        mask = exchange.mask(q.shape[2], q)
        out, lse = block_attention(q, k, v, mask)
        ctx.exchange, ctx.layer, ctx.mask = exchange, layer, mask
        ctx.save_for_backward(q, k, v, out, lse)
        (here,) = exchange.to_tokens(layer, "forward", [out])
        exchange.pacer.after_exchange("forward", layer)
        return here

    @staticmethod
    def backward(ctx: _TradedContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        exchange = ctx.exchange
        exchange.pacer.before_exchange("backward", ctx.layer)
        q, k, v, out, lse = ctx.saved_tensors
        (d_out,) = exchange.to_heads(ctx.layer, "backward", [grads[0]])
        traded = exchange.to_tokens(
            ctx.layer, "backward", list(block_attention_backward(d_out, q, k, v, out, lse, ctx.mask))
        )
        exchange.pacer.after_exchange("backward", ctx.layer)
        return None, None, *traded


_traded = operation(_Traded, _Traded.forward)
