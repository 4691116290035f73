"""Encoded chunks from rank to rank around a ring (Liu et al. 2023, arXiv 2310.01889), the next block in flight while
this one is computed.

Nothing that was received is kept: the backward pass sends K and V round again, and behind each block the gradient of
its parts, to which every rank adds its share (in fp32, rounded to the wire at each hop) until it is home. Per layer a
rank sends N−1 messages forward, and 2(N−1) backward, all of them to its neighbour.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from testbed.codecs import Direction, Shape
from testbed.codecs.wire import Float
from testbed.errors import UsageError
from testbed.parallel.autograd import Context, operation
from testbed.parallel.block_masks import Sight
from testbed.parallel.exchanges.base import Exchange, Traffic, flat_heads, joined
from testbed.parallel.exchanges.codec_io import Coded, Parts, added
from testbed.parallel.exchanges.local import own_backward, own_pieces

__all__ = ["Ring"]


class Ring(Exchange):
    """Blocks travel to the next rank, N−1 times."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for codec in self.codecs:
            wires = codec.wires(Shape(batch=1, tokens=16))
            if not all(isinstance(wire.of("backward"), Float) for wire in wires if wire.returned):
                raise UsageError(
                    f"a ring adds up gradients on their way, which {codec.config.wire} would round at every hop: "
                    "give the codec wire_backward = bf16 or fp32, or use all-gather"
                )

    def traffic(self, layer: int, direction: Direction, batch: int, context: int) -> Traffic:
        sent, per_rank, world = Traffic(), self.layout.per_rank, self.layout.world
        if self.codecs and world > 1:
            shape = Shape(batch=batch * per_rank, tokens=context // world // per_rank)
            sent.add(self.codecs[layer].payload(shape), direction, world - 1)
            if direction == "backward":
                sent.add(self.codecs[layer].payload(shape, "backward"), direction, world - 1)
        return sent

    def _begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        call = _Call(self, layer, q_BTC.shape[0], q_BTC.shape[1])
        key, value, parts = call.encode(k_BTE, v_BTE)
        q, k, v = self.rotated(q_BTC), self.rotated(key), self.heads(value)
        return lambda: flat_heads(_around(call, len(parts), q, k, v, *parts, *call.codec.decoder_parameters()))


class _Call(Coded[Ring]):
    """One layer's way around."""

    def pass_on(self, message: Tensor, direction: Direction, kind: Direction) -> Callable[[], Tensor]:
        """To the next rank; the callable waits for the same from the one before. `kind` is what the message looks
        like."""
        exchange, world = self.exchange, self.exchange.layout.world
        outgoing: list[Tensor | None] = [None] * world
        incoming: list[int | None] = [None] * world
        outgoing[(exchange.rank + 1) % world] = message
        incoming[(exchange.rank - 1) % world] = message.numel()
        sent = Traffic()
        sent.add(self.codec.payload(self.shape, kind), direction)
        ticket = exchange.transport.exchange(outgoing, sent.payload, incoming=incoming)
        messages = None if exchange.overlap else exchange.wait(ticket)

        def arrived() -> Tensor:
            message = (messages or exchange.wait(ticket))[(exchange.rank - 1) % world]
            assert message is not None
            return message

        return arrived

    def sender(self, hop: int) -> int:
        """Whose block is here after so many hops."""
        return (self.exchange.rank - hop) % self.exchange.layout.world

    def visible(self, rank: int) -> bool:
        """Whether any query here comes behind some token of that rank."""
        layout = self.exchange.layout
        return min(layout.chunks(rank)) < max(layout.chunks(self.exchange.rank))


class _RingContext(Context):
    call: _Call
    sight: Sight
    message: Tensor | None
    count: int
    """Parts."""
    shapes: list[torch.Size]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _RingContext, call: _Call, count: int, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        exchange, hops = call.exchange, call.exchange.layout.world - 1
        parts, decoder = rest[:count], rest[count:]
        exchange.pacer.before_exchange("forward", call.layer)
        message = call.codec.pack(parts, call.shape)
        sight = exchange.sight(exchange.context(q.shape[2]))
        arriving: Any = call.pass_on(message, "forward", "forward") if hops else None
        seen = sight.attend(q, own_pieces(sight, k, v))
        for hop in range(1, hops + 1):
            block = arriving()
            if hop < hops:
                arriving = call.pass_on(block, "forward", "forward")
            if call.visible(call.sender(hop)):
                far = call.received(call.sender(hop), call.codec.unpack(block, call.shape, q))
                seen = sight.attend(q, far.pieces(decoder), seen)
        exchange.pacer.after_exchange("forward", call.layer)
        out, lse = joined(seen)
        ctx.call, ctx.sight, ctx.message, ctx.count = call, sight, message, count
        ctx.shapes = [part.shape for part in parts]
        ctx.save_for_backward(q, k, v, out, lse, *decoder)
        return out

    @staticmethod
    def backward(ctx: _RingContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call, sight, d_out = ctx.call, ctx.sight, grads[0].contiguous()
        q, k, v, out, lse, *saved = ctx.saved_tensors
        decoder = tuple(tensor.detach().requires_grad_() for tensor in saved)
        hops = call.exchange.layout.world - 1
        call.exchange.pacer.before_exchange("backward", call.layer)
        assert ctx.message is not None, "one backward pass"
        arriving: Any = call.pass_on(ctx.message, "backward", "forward") if hops else None
        dq, dk, dv = own_backward(sight, d_out, q, k, v, out, lse)
        d_decoder: list[Tensor | None] = [None] * len(decoder)
        behind: Any = None  # the gradients that follow the block of the hop before
        for hop in range(1, hops + 1):
            block = arriving()
            if hop < hops:
                arriving = call.pass_on(block, "backward", "forward")
            share: Parts = (None,) * ctx.count
            if call.visible(call.sender(hop)):
                far = call.received(call.sender(hop), call.codec.unpack(block, call.shape, q))
                dq_far, d_pieces = sight.backward(d_out, q, out, lse, far.pieces(decoder))
                share, shares = far.gradients(d_pieces, decoder)
                dq = dq + dq_far
                d_decoder = [added(total, one) for total, one in zip(d_decoder, shares, strict=True)]
            total = _summed(ctx, share, q)
            if behind is not None:
                total = _plus(total, call.codec.unpack(behind(), call.shape, q, "backward"))
            behind = call.pass_on(call.codec.pack(total, call.shape, "backward"), "backward", "backward")
        total = _summed(ctx, (None,) * ctx.count, q)
        if behind is not None:
            total = _plus(total, call.codec.unpack(behind(), call.shape, q, "backward"))
        call.exchange.pacer.after_exchange("backward", call.layer)
        ctx.message = None
        return None, None, dq, dk, dv, *total, *d_decoder


_around = operation(_Ring, _Ring.forward)


def _summed(ctx: _RingContext, share: Parts, like: Tensor) -> Parts:
    """A rank's share of the parts' gradients, zeros where it saw nothing."""
    call = ctx.call
    summed: list[Tensor | None] = []
    for part, shape, wire in zip(share, ctx.shapes, call.codec.wires(call.shape), strict=True):
        empty = torch.zeros(shape, dtype=like.dtype, device=like.device) if wire.returned else None
        summed.append(empty if part is None else part)
    return tuple(summed)


def _plus(first: Parts, second: Parts) -> Parts:
    return tuple(None if a is None or b is None else a + b for a, b in zip(first, second, strict=True))
