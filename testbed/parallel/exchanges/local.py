"""No exchange: a rank's tokens see only what the same rank holds. The control.

Positions still count from the start of the sequence. Over one rank that is plain attention over whole sequences,
which is what a trainer without context parallelism does.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from testbed.codecs import Direction
from testbed.parallel.autograd import Context, operation
from testbed.parallel.block_masks import Piece, Sight
from testbed.parallel.exchanges.base import Exchange, Pacer, Traffic, flat_heads, joined

__all__ = ["Local", "own_pieces"]


class Local(Exchange):
    """Attends to the own chunks only."""

    def traffic(self, layer: int, direction: Direction, batch: int, context: int) -> Traffic:  # noqa: ARG002
        return Traffic()

    def _begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        q_BTC = pace_point(q_BTC, self.pacer, layer)
        sight = self.sight(self.context(q_BTC.shape[1]))
        q, k, v = self.rotated(q_BTC), self.rotated(k_BTE), self.heads(v_BTE)
        return lambda: flat_heads(_own(sight, q, k, v))


class _PaceContext(Context):
    pacer: Pacer
    layer: int


class _PacePoint(torch.autograd.Function):
    """The identity, which tells the pacer that a layer's exchange would stand here."""

    @staticmethod
    def forward(ctx: _PaceContext, x: Tensor, pacer: Pacer, layer: int) -> Tensor:
        ctx.pacer, ctx.layer = pacer, layer
        pacer.before_exchange("forward", layer)
        pacer.after_exchange("forward", layer)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _PaceContext, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.pacer.before_exchange("backward", ctx.layer)
        ctx.pacer.after_exchange("backward", ctx.layer)
        return grads[0], None, None


pace_point = operation(_PacePoint, _PacePoint.forward)


class _OwnContext(Context):
    sight: Sight


class _Own(torch.autograd.Function):
    """Attention of the own chunks over themselves."""

    @staticmethod
    def forward(ctx: _OwnContext, sight: Sight, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = joined(sight.attend(q, own_pieces(sight, k, v)))
        ctx.sight = sight
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: _OwnContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return None, *own_backward(ctx.sight, grads[0].contiguous(), q, k, v, out, lse)


_own = operation(_Own, _Own.forward)


def own_pieces(sight: Sight, k: Tensor, v: Tensor) -> list[Piece]:
    """A rank's own K and V (B, G, T, D) as pieces."""
    pairs = zip(sight.chunks, k.split(sight.size, 2), v.split(sight.size, 2), strict=True)
    return [Piece(chunk, key, value) for chunk, key, value in pairs]


def own_backward(
    sight: Sight, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) through the own chunks."""
    dq, d_pieces = sight.backward(d_out, q, out, lse, own_pieces(sight, k, v))
    if len(d_pieces) == 1:
        assert d_pieces[0] is not None
        return dq, *d_pieces[0]
    dk = torch.cat([pair[0] for pair in d_pieces if pair is not None], dim=2)
    dv = torch.cat([pair[1] for pair in d_pieces if pair is not None], dim=2)
    return dq, dk, dv
