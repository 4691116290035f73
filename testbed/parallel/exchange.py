"""How K and V, or what stands for them, reach the other nodes.

The sequence is cut contiguously: of N nodes, node i holds tokens i·T … (i+1)·T. A query sees every token before
it, so its own chunk causally, chunks of lower nodes whole, and those of higher nodes not at all: masking by
position and masking by chunk are here the same.

- `AllGather` sends the encoded chunk to every other node, keeps what it receives for the backward pass, and
  there returns to each owner the gradient of what it sent (a true reduce-scatter, summed in rank order).
- `Local` sends nothing: a node attends to its own chunk only. The control.
- `InProcess` does the arithmetic of N nodes in one process without sending anything: the oracle of the tests,
  and how validation is done, off the links.

Shape letters: B sequences, T tokens of one chunk, S tokens seen, C model width, E = d_kv, H heads, G K/V heads,
D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from testbed.codecs import Codec, Shape
from testbed.collector.trace import span
from testbed.config import Model
from testbed.parallel.attention import (
    block_attention,
    block_attention_backward,
    merge,
    rotary_tables,
    rotate,
    split_heads,
)
from testbed.parallel.transport import Transport

__all__ = ["AllGather", "InProcess", "Local", "Pacer", "Unpaced"]

Direction = str  # "forward" | "backward"


class Pacer(Protocol):
    """What holds a rank to the time and size of the node it stands for (`testbed.pace`)."""

    def before_exchange(self, direction: Direction, layer: int) -> None:
        """Called when the computation up to an exchange is done."""
        ...

    def ballast(self, payload: int) -> int:
        """Bytes to add to a K/V message of `payload` bytes."""
        ...

    def after_exchange(self, direction: Direction, layer: int) -> None:
        """Called when an exchange has ended."""
        ...


class Unpaced:
    """The machine's own speed and sizes."""

    def before_exchange(self, direction: Direction, layer: int) -> None:
        """Nothing to wait for."""

    def ballast(self, payload: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def after_exchange(self, direction: Direction, layer: int) -> None:
        """Nothing to wait for."""


class Local:
    """No exchange: each chunk on its own. Positions still count from the start of the sequence."""

    def __init__(self, model: Model, *, rank: int = 0, pacer: Pacer | None = None) -> None:
        self.model = model
        self.rank = rank
        self.pacer = pacer or Unpaced()

    def attend(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Tensor:
        """Attention of a chunk over itself: (B, T, C)."""
        q_BTC = _PacePoint.apply(q_BTC, self.pacer, layer)  # pyrefly: ignore
        tokens, width = q_BTC.shape[1], self.model.head_width
        tables = rotary_tables(self.rank * tokens, tokens, width, self.model.rope_base, q_BTC)
        q = rotate(split_heads(q_BTC, width), tables)
        k = rotate(split_heads(k_BTE, width), tables)
        return _CausalBlock.apply(q, k, split_heads(v_BTE, width)).transpose(1, 2).flatten(2)  # pyrefly: ignore


class _PacePoint(torch.autograd.Function):
    """The identity, which tells the pacer that a layer's exchange would stand here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pacer: Pacer, layer: int) -> Tensor:
        ctx.pacer, ctx.layer = pacer, layer
        pacer.before_exchange("forward", layer)
        pacer.after_exchange("forward", layer)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.pacer.before_exchange("backward", ctx.layer)
        ctx.pacer.after_exchange("backward", ctx.layer)
        return grads[0], None, None


class _CausalBlock(torch.autograd.Function):
    """Attention of one chunk over itself."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = block_attention(q, k, v, causal=True)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return block_attention_backward(grads[0], q, k, v, out, lse, causal=True)


class AllGather:
    """Every node's encoded chunk to every node, directly; gradients back the same way."""

    def __init__(
        self, model: Model, codecs: Sequence[Codec], transport: Transport, *, pacer: Pacer | None = None
    ) -> None:
        self.model = model
        self.codecs = codecs
        self.transport = transport
        self.pacer = pacer or Unpaced()

    def attend(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Tensor:
        """Attention of this node's queries over all chunks up to its own: (B, T, C)."""
        codec, width, rank = self.codecs[layer], self.model.head_width, self.transport.rank
        tokens = q_BTC.shape[1]
        encoded = codec.encode(k_BTE, v_BTE)
        tables = rotary_tables(0, (rank + 1) * tokens, width, self.model.rope_base, q_BTC)
        own = (tables[0][rank * tokens :], tables[1][rank * tokens :])
        call = _Call(self, layer, codec, Shape(batch=q_BTC.shape[0], tokens=tokens), tables)
        out_BHTD = _Exchanged.apply(  # pyrefly: ignore
            call,
            rotate(split_heads(q_BTC, width), own),
            rotate(split_heads(encoded.key_BTE, width), own),
            split_heads(encoded.value_BTE, width),
            *encoded.parts,
            *codec.decoder_parameters(),
        )
        return out_BHTD.transpose(1, 2).flatten(2)


@dataclass
class _Call:
    """What one layer's exchange needs besides tensors."""

    exchange: AllGather
    layer: int
    codec: Codec
    shape: Shape
    tables: tuple[Tensor, Tensor]
    """cos and sin from the start of the sequence to the end of the own chunk."""

    def send(self, direction: Direction, messages: list[Tensor | None]) -> Any:
        """Post the messages of one direction, filled up with ballast, on time."""
        payload = self.codec.payload(self.shape)
        channels = {f"kv_{direction}" if name == "kv" else name: size for name, size in payload.items()}
        pacer = self.exchange.pacer
        pacer.before_exchange(direction, self.layer)
        ballast = pacer.ballast(sum(payload.values()))
        return self.exchange.transport.exchange(messages, channels, ballast=ballast)

    def receive(self, direction: Direction, ticket: Any) -> list[Tensor | None]:
        """Wait for the messages of one direction; only this wait is time that the exchange costs."""
        with span("exchange"):
            messages = ticket.wait()
        self.exchange.pacer.after_exchange(direction, self.layer)
        return messages

    def decode(self, received: list[tuple[Tensor, ...]], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Rotated K and V (B, G, S, D) of the chunks before the own one."""
        width = self.exchange.model.head_width
        decoded = [self.codec.decode(parts, decoder) for parts in received]
        k_BSE = torch.cat([key for key, _ in decoded], dim=1)
        v_BSE = torch.cat([value for _, value in decoded], dim=1)
        before = (self.tables[0][: k_BSE.shape[1]], self.tables[1][: k_BSE.shape[1]])
        return rotate(split_heads(k_BSE, width), before), split_heads(v_BSE, width).contiguous()


class _Exchanged(torch.autograd.Function):
    """Attention over the own chunk while the others' travel, then over theirs, merged."""

    @staticmethod
    def forward(ctx: Any, call: _Call, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        transport = call.exchange.transport
        decoder_size = len(call.codec.decoder_parameters())
        parts, decoder = rest[: len(rest) - decoder_size], rest[len(rest) - decoder_size :]

        message = call.codec.pack(parts, call.shape)
        ticket = call.send("forward", _to_others(message, transport))
        merged = block_attention(q, k, v, causal=True)  # overlaps with the exchange
        messages = call.receive("forward", ticket)

        ctx.call, ctx.received, ctx.decoder = call, [], []
        k_far = v_far = None
        if transport.rank > 0:
            with torch.enable_grad():  # a small graph of its own: parts and decoder to rotated K and V
                ctx.decoder = [tensor.detach().requires_grad_() for tensor in decoder]
                for sender in messages[: transport.rank]:
                    assert sender is not None
                    unpacked = call.codec.unpack(sender, call.shape, like=q)
                    ctx.received.append(tuple(part.requires_grad_() for part in unpacked))
                k_far, v_far = call.decode(ctx.received, tuple(ctx.decoder))
            far = block_attention(q, k_far.detach(), v_far.detach(), causal=False)
            merged = merge(merged, far)
        ctx.far = (k_far, v_far)
        ctx.save_for_backward(q, k, v, *merged)
        ctx.sent = [part.shape for part in parts]
        return merged[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call, (d_out,) = ctx.call, grads
        q, k, v, out, lse = ctx.saved_tensors
        transport = call.exchange.transport
        d_out = d_out.contiguous()

        dq_far, d_received, d_decoder = _backward_far(ctx, d_out, q, out, lse)
        zeros = tuple(torch.zeros(shape, dtype=q.dtype, device=q.device) for shape in ctx.sent)
        outgoing: list[Tensor | None] = [None] * transport.world
        for other in range(transport.world):
            if other != transport.rank:  # later chunks were not seen: their owners are told zero, at full size
                gradient = d_received[other] if other < transport.rank else zeros
                outgoing[other] = call.codec.pack(gradient, call.shape)
        ticket = call.send("backward", outgoing)
        dq, dk, dv = block_attention_backward(d_out, q, k, v, out, lse, causal=True)  # overlaps
        messages = call.receive("backward", ticket)

        d_parts = list(zeros)
        for message in messages:  # in rank order: the sum is the same to the last bit on every link
            if message is not None:
                returned = call.codec.unpack(message, call.shape, like=q)
                d_parts = [total + part for total, part in zip(d_parts, returned, strict=True)]
        ctx.received = ctx.decoder = ctx.far = None
        return None, dq + dq_far, dk, dv, *d_parts, *d_decoder


def _backward_far(
    ctx: Any, d_out: Tensor, q: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor | int, list[tuple[Tensor, ...]], list[Tensor | None]]:
    """(dq, gradients of each received chunk's parts, gradients of the decoder) through the far blocks."""
    call = ctx.call
    if not ctx.received:
        return 0, [], [None] * len(call.codec.decoder_parameters())
    k_far, v_far = ctx.far
    dq, dk, dv = block_attention_backward(d_out, q, k_far.detach(), v_far.detach(), out, lse, causal=False)
    flat = [part for parts in ctx.received for part in parts]
    gradients = torch.autograd.grad([k_far, v_far], [*flat, *ctx.decoder], [dk, dv])
    count = len(ctx.sent)
    per_chunk = [tuple(gradients[i : i + count]) for i in range(0, len(flat), count)]
    return dq, per_chunk, list(gradients[len(flat) :])


def _to_others(message: Tensor, transport: Transport) -> list[Tensor | None]:
    return [message if other != transport.rank else None for other in range(transport.world)]


class InProcess:
    """The arithmetic of `nodes` nodes, in one process on whole sequences. Rounds as the wire would."""

    def __init__(self, model: Model, codecs: Sequence[Codec] | None, *, nodes: int) -> None:
        self.model = model
        self.codecs = codecs
        self.nodes = nodes
        self.seen: list[Tensor] = []
        """[K, V] of every call, (B·S, 2E), where `record` is set: what a codec is started from."""
        self.record = False

    def attend(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Tensor:
        """Attention of whole sequences (T is all tokens here), chunk by chunk: (B, T, C)."""
        if self.record:
            self.seen.append(torch.cat((k_BTE, v_BTE), dim=-1).detach().flatten(0, 1))
        width, tokens = self.model.head_width, q_BTC.shape[1] // self.nodes
        tables = rotary_tables(0, q_BTC.shape[1], width, self.model.rope_base, q_BTC)
        q = rotate(split_heads(q_BTC, width), tables)
        chunks = list(zip(k_BTE.split(tokens, 1), v_BTE.split(tokens, 1), strict=True))
        if self.codecs is None:
            own, far = chunks, [None] * self.nodes
        else:
            own, far = self._coded(layer, chunks)
        out = []
        for node, (k_own, v_own) in enumerate(own):
            here = slice(node * tokens, (node + 1) * tokens)
            before = [seen for seen in far[:node] if seen is not None]
            k = torch.cat([*(key for key, _ in before), k_own], dim=1)
            v = torch.cat([*(value for _, value in before), v_own], dim=1)
            start = (node + 1) * tokens - k.shape[1]
            there = (tables[0][start : here.stop], tables[1][start : here.stop])
            out.append(_attend_plain(q[:, :, here], rotate(split_heads(k, width), there), split_heads(v, width)))
        return torch.cat(out, dim=2).transpose(1, 2).flatten(2)

    def _coded(self, layer: int, chunks: list[tuple[Tensor, Tensor]]) -> tuple[list, list]:
        codec = self.codecs[layer]  # pyrefly: ignore
        own, far = [], []
        for key, value in chunks:
            encoded = codec.encode(key, value)
            shape = Shape(batch=key.shape[0], tokens=key.shape[1])
            travelled = _Travelled.apply(codec, shape, *encoded.parts)  # pyrefly: ignore
            own.append((encoded.key_BTE, encoded.value_BTE))
            far.append(codec.decode(travelled, codec.decoder_parameters()))
        return own, far


class _Travelled(torch.autograd.Function):
    """Parts as they look after the wire; their gradients likewise."""

    @staticmethod
    def forward(ctx: Any, codec: Codec, shape: Shape, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.codec, ctx.shape = codec, shape
        return codec.unpack(codec.pack(parts, shape), shape, like=parts[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        returned = ctx.codec.unpack(ctx.codec.pack(grads, ctx.shape), ctx.shape, like=grads[0])
        return None, None, *returned


def _attend_plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√D) v with the last query at the last key, written out."""
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(-1, -2) / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1 + k.shape[2] - q.shape[2])
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v.repeat_interleave(group, 1)
