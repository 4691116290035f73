"""Every rank's encoded chunks to every other rank, directly; gradients back the same way.

What is received is kept for the backward pass, so K and V travel once: as it came where decoding costs nothing but a
rotation, which is then repeated, and otherwise decoded and rotated. The way back is a true reduce-scatter: each
owner receives the gradient of what it sent from every rank and sums in rank order, so that the sum is the same to
the last bit on every link. Per layer and direction a rank sends (N−1) messages of the codec's size.

`MaskAware` sends each token only to ranks that hold a query which sees it: a later one, of the same document.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from testbed.codecs import Direction, Shape
from testbed.errors import UsageError
from testbed.parallel.autograd import Context, operation
from testbed.parallel.block_masks import Piece, Sight
from testbed.parallel.exchanges.base import Exchange, Traffic, flat_heads, joined
from testbed.parallel.exchanges.codec_io import Coded, Far, Parts, added
from testbed.parallel.exchanges.local import own_backward, own_pieces
from testbed.parallel.layout import Layout

__all__ = ["AllGather", "MaskAware"]


class AllGather(Exchange):
    """Every token to every rank."""

    begins_early = True

    def chosen(self, owner: int, to: int, batch: int, context: int) -> Tensor | None:  # noqa: ARG002
        """Which of the owner's encoded tokens travel to a rank, as indices into its B·c·t; None: all."""
        return None

    def traffic(self, layer: int, direction: Direction, batch: int, context: int) -> Traffic:
        sent, per_rank, world = Traffic(), self.layout.per_rank, self.layout.world
        shape = Shape(batch=batch * per_rank, tokens=context // world // per_rank)
        for other in range(world):
            if other == self.rank or not self.codecs:
                continue
            owner, to = (self.rank, other) if direction == "forward" else (other, self.rank)
            chosen = self.chosen(owner, to, batch, context)
            sent.add(self.codecs[layer].payload(_shape(shape, chosen), direction), direction)
        return sent

    def _begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        call = _Call(self, layer, q_BTC.shape[0], q_BTC.shape[1])
        key, value, parts = call.encode(k_BTE, v_BTE)
        posted = _post(call, *parts)
        q, k, v = self.rotated(q_BTC), self.rotated(key), self.heads(value)
        return lambda: flat_heads(_finish(call, posted, q, k, v, *call.codec.decoder_parameters()))


class MaskAware(AllGather):
    """Only what a later query of the same document may see. Takes a codec that encodes each token on its own."""

    bytes_follow_documents = True

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for codec in self.codecs:
            if not codec.token_wise:
                raise UsageError(
                    f"a mask-aware exchange leaves tokens out, which the codec '{codec.config.name}' cannot: it takes "
                    "one that encodes each token on its own (exact, int8, int4, latent …), or use all-gather"
                )

    def chosen(self, owner: int, to: int, batch: int, context: int) -> Tensor | None:
        known = ("chosen", owner, to, batch, context)
        if self.documents is None:  # nothing but order decides: the same for every batch
            if known not in self._shared:
                self._shared[known] = _visible(self.layout, owner, to, torch.zeros(batch, context, dtype=torch.long))
            return self._shared[known]
        if known not in self._chosen:
            self._chosen[known] = _visible(self.layout, owner, to, self.documents)
        return self._chosen[known]

    def on(self, documents_BT: Tensor | None) -> "MaskAware":
        mine = super().on(documents_BT)
        mine._chosen = {}
        return mine

    _chosen: dict[Any, Tensor]


def _visible(layout: Layout, owner: int, to: int, documents_BT: Tensor) -> Tensor:
    """Indices into the owner's B·c·t tokens of those that some query of rank `to` sees."""
    context = documents_BT.shape[1]
    there, here = layout.positions(to, context), layout.positions(owner, context)
    documents = documents_BT.long()
    count = int(documents.max()) + 1
    newest = torch.full((len(documents), count), -1).scatter_reduce(
        1, documents[:, there], there.expand(len(documents), -1), "amax"
    )  # the last query of each document at that rank
    seen_BT = newest.gather(1, documents[:, here]) > here
    return seen_BT.flatten().nonzero().squeeze(1)


def _shape(shape: Shape, chosen: Tensor | None) -> Shape:
    return shape if chosen is None else Shape(batch=1, tokens=len(chosen))


class _Call(Coded[AllGather]):
    """What one layer's exchange needs besides tensors, and the exchange under way."""

    ticket: Any = None

    def peers(self) -> Sequence[int]:
        return [other for other in range(self.exchange.layout.world) if other != self.exchange.rank]

    def chosen(self, owner: int, to: int) -> Tensor | None:
        return self.exchange.chosen(owner, to, self.batch, self.exchange.context(self.size * self.per_rank))

    def post(self, direction: Direction, by_peer: dict[int, Parts]) -> None:
        """Send each peer its parts, or their gradients, filled up with ballast and on time."""
        exchange, rank = self.exchange, self.exchange.rank
        pacer, world = exchange.pacer, exchange.layout.world
        outgoing: list[Tensor | None] = [None] * world
        incoming: list[int | None] = [None] * world
        sent = Traffic()
        whole: Tensor | None = None  # what goes to all alike is packed once
        for peer, parts in by_peer.items():
            ours, theirs = self.chosen(rank, peer), self.chosen(peer, rank)
            out, into = (ours, theirs) if direction == "forward" else (theirs, ours)
            shape = _shape(self.shape, out)
            if out is not None or direction == "backward":
                outgoing[peer] = self.codec.pack(_picked(parts, out), shape, direction)
            else:
                whole = self.codec.pack(parts, shape, direction) if whole is None else whole
                outgoing[peer] = whole
            sent.add(self.codec.payload(shape, direction), direction)
            incoming[peer] = sum(self.codec.payload(_shape(self.shape, into), direction).values())
        pacer.before_exchange(direction, self.layer)
        ballast = pacer.ballast(direction, sum(self.codec.payload(self.shape, direction).values()))
        self.ticket = exchange.transport.exchange(outgoing, sent.payload, incoming=incoming, ballast=ballast)
        self.direction = direction
        self._messages: list[Tensor | None] | None = None
        if not exchange.overlap:
            self._messages = exchange.wait(self.ticket)

    def receive(self) -> list[Tensor | None]:
        """Wait for what the others sent."""
        messages = self._messages if self._messages is not None else self.exchange.wait(self.ticket)
        self.exchange.pacer.after_exchange(self.direction, self.layer)
        self.ticket = None
        return messages


def _picked(parts: Parts, chosen: Tensor | None) -> Parts:
    """The chosen tokens' rows of parts of (B·c, t, …)."""
    if chosen is None:
        return parts
    return tuple(None if part is None else part.flatten(0, 1)[chosen].unsqueeze(0) for part in parts)


class _PostContext(Context):
    call: _Call
    like: Tensor | None
    shapes: list[torch.Size]


class _Post(torch.autograd.Function):
    """Parts leave; on the way back, where a sequence's gradients are waited for and summed."""

    @staticmethod
    def forward(ctx: _PostContext, call: _Call, *parts: Tensor) -> Tensor:
        ctx.call, ctx.like = call, parts[0]
        ctx.shapes = [part.shape for part in parts]
        call.post("forward", dict.fromkeys(call.peers(), parts))
        return torch.zeros(0, dtype=parts[0].dtype, device=parts[0].device)

    @staticmethod
    def backward(ctx: _PostContext, *_: Tensor) -> tuple[Tensor | None, ...]:
        call, like = ctx.call, ctx.like
        assert like is not None, "one backward pass"
        messages = call.receive()
        total: list[Tensor | None] = [
            torch.zeros(shape, dtype=like.dtype, device=like.device) if wire.returned else None
            for shape, wire in zip(ctx.shapes, call.codec.wires(call.shape), strict=True)
        ]
        for peer in call.peers():
            message = messages[peer]
            assert message is not None
            chosen = call.chosen(call.exchange.rank, peer)
            returned = call.codec.unpack(message, _shape(call.shape, chosen), like, "backward")
            for gradient, part in zip(total, returned, strict=True):
                if gradient is not None and part is not None:
                    if chosen is None:
                        gradient += part
                    else:
                        gradient.flatten(0, 1).index_add_(0, chosen.to(part.device), part.squeeze(0))
        ctx.like = None
        return None, *total


_post = operation(_Post, _Post.forward)


class _FinishContext(Context):
    call: _Call
    sight: Sight
    far: list[tuple[Far, list[Piece] | None]] | None
    """What came, with its pieces (None: to be decoded again); None once it is spent."""
    decoder: tuple[Tensor, ...]


class _Finish(torch.autograd.Function):
    """Attention over the own chunks while the others' travel, then over theirs, merged."""

    @staticmethod
    def forward(
        ctx: _FinishContext, call: _Call, _: Tensor, q: Tensor, k: Tensor, v: Tensor, *decoder: Tensor
    ) -> Tensor:
        exchange, codec = call.exchange, call.codec
        sight = exchange.sight(exchange.context(q.shape[2]))
        seen = sight.attend(q, own_pieces(sight, k, v))  # overlaps with the exchange
        messages = call.receive()
        last = max(sight.chunks)
        ctx.decoder = tuple(tensor.detach().requires_grad_() for tensor in decoder)
        ctx.far, flat = [], []
        repeated = not codec.decode_flops(1)
        for peer in call.peers():
            chosen = call.chosen(peer, exchange.rank)
            if min(exchange.layout.chunks(peer)) < last and (chosen is None or len(chosen)):
                message = messages[peer]
                assert message is not None
                parts = codec.unpack(message, _shape(call.shape, chosen), q, "forward")
                far = call.received(peer, parts, chosen)
                pieces = far.pieces(ctx.decoder)
                flat += pieces
                if repeated:
                    far.forget()
                ctx.far.append((far, None if repeated else pieces))
        if flat:
            seen = sight.attend(q, sorted(flat, key=lambda piece: piece.chunk), seen)
        out, lse = joined(seen)
        ctx.call, ctx.sight = call, sight
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: _FinishContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call, sight, d_out = ctx.call, ctx.sight, grads[0].contiguous()
        q, k, v, out, lse = ctx.saved_tensors
        assert ctx.far is not None, "one backward pass"
        seen = [(far, far.pieces(ctx.decoder) if pieces is None else pieces) for far, pieces in ctx.far]
        flat = [piece for _, pieces in seen for piece in pieces]
        order = sorted(range(len(flat)), key=lambda i: flat[i].chunk)
        dq, d_sorted = sight.backward(d_out, q, out, lse, [flat[i] for i in order]) if flat else (None, [])
        d_flat: list[Any] = [None] * len(flat)
        for i, pair in zip(order, d_sorted, strict=True):
            d_flat[i] = pair

        returned: dict[int, Parts] = {}
        d_decoder: list[Tensor | None] = [None] * len(ctx.decoder)
        for far, pieces in seen:
            parts, shares = far.gradients([d_flat.pop(0) for _ in pieces], ctx.decoder)
            returned[far.rank] = _spread(parts, far, call)
            d_decoder = [added(total, share) for total, share in zip(d_decoder, shares, strict=True)]
        zeros = _zeros(call, q)
        call.post("backward", {peer: returned.get(peer, zeros) for peer in call.peers()})
        dq_own, dk, dv = own_backward(sight, d_out, q, k, v, out, lse)  # overlaps
        if dq is not None:
            dq_own = dq_own + dq
        ctx.far, ctx.decoder = None, ()
        return None, q.new_zeros(0), dq_own, dk, dv, *d_decoder


_finish = operation(_Finish, _Finish.forward)


def _spread(parts: Parts, far: Far, call: _Call) -> Parts:
    """Gradients of the tokens that came, at their places among all of the sender's: what `_picked` takes."""
    if far.chosen is None:
        return parts
    rows, size = call.shape.batch, call.shape.tokens
    placed: list[Tensor | None] = []
    for part in parts:
        if part is None:
            placed.append(None)
            continue
        empty = torch.zeros(rows * size, *part.shape[2:], dtype=part.dtype, device=part.device)
        placed.append(
            empty.index_copy(0, far.chosen.to(part.device), part.squeeze(0)).view(rows, size, *part.shape[2:])
        )
    return tuple(placed)


def _zeros(call: _Call, like: Tensor) -> Parts:
    """What the owner of an unseen chunk is told, at full size."""
    wires = call.codec.wires(call.shape)
    return tuple(
        torch.zeros(wire.shape, dtype=like.dtype, device=like.device) if wire.returned else None for wire in wires
    )
