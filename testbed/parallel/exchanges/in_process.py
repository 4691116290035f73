"""The arithmetic of N ranks in one process, on whole sequences, without sending anything.

The oracle of the tests, and how validation is done, off the links. Rounds as the wire would. Attention is written out
plainly here, on purpose: it shares nothing with what it checks but the codecs.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from testbed.codecs import Codec, Shape, whole
from testbed.config import Model
from testbed.config.arm import IdsConfig
from testbed.parallel.attention import rotary_tables, rotate, split_heads
from testbed.parallel.autograd import Context, operation
from testbed.parallel.layout import Layout

__all__ = ["InProcess"]


class InProcess:
    """Ranks of `layout`; without codecs each sees only what it holds itself, as in `Local`."""

    def __init__(
        self,
        model: Model,
        codecs: Sequence[Codec] | None,
        *,
        nodes: int,
        layout: Layout | None = None,
        ids: IdsConfig | None = None,
    ) -> None:
        self.model = model
        self.codecs = codecs
        self.layout = layout or Layout("contiguous", nodes)
        self.ids = ids
        """What ranks make of the others' token ids, as in `Ids`; None: nothing."""
        self._made: list[list[Any]] = []
        self.documents: Tensor | None = None
        self.seen: list[Tensor] = []
        """[K, V] of every call, (B·S, 2E), where `record` is set: what a codec is started from."""
        self.record = False

    def on(self, documents_BT: Tensor | None) -> Self:
        """The same for a batch whose tokens see their own document only; None: all."""
        mine = copy.copy(self)
        mine.documents = documents_BT
        return mine

    def read(self, decoder: Any, tokens_BT: Tensor) -> None:
        """Make every chunk's K and V of its ids, layer by layer, chunk by chunk."""
        self._made = []
        if self.ids is None:
            return
        depth, context = self.ids.depth(self.model.layers), tokens_BT.shape[1]
        size = context // (self.layout.per_rank * self.layout.world)
        window = size if self.ids.window == "chunk" else self.ids.window
        tables = rotary_tables(
            torch.arange(context), self.model.head_width, self.model.rope_base, decoder.embedding.weight
        )
        self._made = [[] for _ in range(depth)]
        for here in torch.arange(context).split(size):
            x = decoder.embedding(tokens_BT[:, here])
            near = here[None, :] >= here[:, None] - window
            for number in range(depth):
                q, key, value = decoder.layers[number].project(x)
                self._made[number].append((key, value, here))
                q, k = (
                    rotate(split_heads(y, self.model.head_width), (tables[0][here], tables[1][here])) for y in (q, key)
                )
                visible = (self._visible(here, here) & near).to(x.device)
                out = _attend_plain(q, k, split_heads(value, self.model.head_width), visible)
                x = decoder.layers[number].feed_forward(x, out.transpose(1, 2).flatten(2))

    def begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        """Nothing travels."""
        return lambda: self.attend(layer, q_BTC, k_BTE, v_BTE)

    def attend(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Tensor:
        """Attention of whole sequences (T is all tokens here), chunk by chunk: (B, T, C)."""
        if self.record:
            self.seen.append(torch.cat((k_BTE, v_BTE), dim=-1).detach().flatten(0, 1))
        width, context = self.model.head_width, q_BTC.shape[1]
        tables = rotary_tables(torch.arange(context), width, self.model.rope_base, q_BTC)
        count = self.layout.per_rank * self.layout.world
        tokens = context // count
        everything = torch.arange(context).split(tokens)
        own = list(zip(k_BTE.split(tokens, 1), v_BTE.split(tokens, 1), everything, strict=True))
        far: list[Any] = [None] * count
        if layer < len(self._made):
            far = self._made[layer]
        elif self.codecs is not None:
            own, far = _coded(self.codecs[layer], own)
        q = rotate(split_heads(q_BTC, width), tables)
        out = []
        for chunk in range(count):
            mine = self.layout.chunks(self.layout.owner(chunk))
            seen = [own[other] if other in mine else far[other] for other in range(chunk + 1)]
            keys, values, places = zip(*(piece for piece in seen if piece is not None), strict=True)
            there = torch.cat(places)
            k = rotate(split_heads(torch.cat(keys, dim=1), width), (tables[0][there], tables[1][there]))
            v = split_heads(torch.cat(values, dim=1), width)
            here = everything[chunk]
            out.append(_attend_plain(q[:, :, here], k, v, self._visible(here, there).to(q.device)))
        return torch.cat(out, dim=2).transpose(1, 2).flatten(2)

    def _visible(self, here: Tensor, there: Tensor) -> Tensor:
        visible = there[None, :] <= here[:, None]
        if self.documents is None:
            return visible
        return (visible & (self.documents[:, here, None] == self.documents[:, None, there])).unsqueeze(1)


class _TravelledContext(Context):
    codec: Codec
    shape: Shape


class _Travelled(torch.autograd.Function):
    """Parts as they look after the wire; their gradients likewise."""

    @staticmethod
    def forward(ctx: _TravelledContext, codec: Codec, shape: Shape, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.codec, ctx.shape = codec, shape
        travelled = whole(codec.unpack(codec.pack(parts, shape), shape, like=parts[0]))
        chosen = [part for part, wire in zip(travelled, codec.wires(shape), strict=True) if not wire.returned]
        ctx.mark_non_differentiable(*chosen)
        return travelled

    @staticmethod
    def backward(ctx: _TravelledContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        message = ctx.codec.pack(grads, ctx.shape, "backward")
        like = next(grad for grad in grads if grad is not None)
        return None, None, *ctx.codec.unpack(message, ctx.shape, like, "backward")


_travelled = operation(_Travelled, _Travelled.forward)


def _coded(codec: Codec, chunks: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[list[Any], list[Any]]:
    """(chunks as their owner uses them, as the others see them): K, V and places each."""
    own, far = [], []
    for key, value, places in chunks:
        encoded = codec.encode(key, value)
        shape = Shape(batch=key.shape[0], tokens=key.shape[1])
        travelled = _travelled(codec, shape, *encoded.parts)
        kept = codec.kept(shape)
        own.append((encoded.key_BTE, encoded.value_BTE, places))
        decoded = codec.decode(travelled, codec.decoder_parameters())
        far.append((*decoded, places if kept is None else places[kept]))
    return own, far


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q kᵀ/√D) v over visible keys, written out; on a GPU, where contexts are long, by a fused kernel."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
