"""From K and V to what travels and back: what exchanges that use codecs share.

A rank's chunks are encoded as rows of the batch, so a codec never sees a boundary between chunks inside a row:
its parts have B·c rows of t tokens, c chunks a rank.
"""

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from testbed.codecs import Codec, Shape, whole
from testbed.parallel.block_masks import Piece
from testbed.parallel.exchanges.base import Exchange

__all__ = ["Coded", "Far", "Parts", "added"]

Parts = tuple[Tensor | None, ...]


Kind = TypeVar("Kind", bound=Exchange)


class Coded(Generic[Kind]):
    """One layer's K and V of one batch, on their way through a codec."""

    def __init__(self, exchange: Kind, layer: int, batch: int, tokens: int) -> None:
        self.exchange = exchange
        self.layer = layer
        self.codec: Codec = exchange.codecs[layer]
        self.per_rank = exchange.layout.per_rank
        self.batch = batch
        self.size = tokens // self.per_rank
        self.shape = Shape(batch=batch * self.per_rank, tokens=self.size)

    def encode(self, k_BTE: Tensor, v_BTE: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """(K, V as this rank itself uses them, what travels)."""
        encoded = self.codec.encode(self._rows(k_BTE), self._rows(v_BTE))
        return self._whole(encoded.key_BTE), self._whole(encoded.value_BTE), encoded.parts

    def received(self, rank: int, parts: Parts, chosen: Tensor | None = None) -> "Far":
        """Another rank's parts, as what its K and V can be decoded from, with gradients.

        `chosen` are the tokens that came, as indices into the rank's B·c·t, if not all did.
        """
        wires = self.codec.wires(self.shape)
        leaves = tuple(
            part.requires_grad_() if wire.returned and part is not None else part
            for part, wire in zip(parts, wires, strict=True)
        )
        return Far(self, rank, leaves, chosen)

    def _rows(self, x_BTE: Tensor) -> Tensor:
        return x_BTE if self.per_rank == 1 else x_BTE.unflatten(1, (self.per_rank, -1)).flatten(0, 1)

    def _whole(self, x_BTE: Tensor) -> Tensor:
        return x_BTE if self.per_rank == 1 else x_BTE.unflatten(0, (-1, self.per_rank)).flatten(1, 2)


class Far:
    """What came from another rank: parts, and once decoded, pieces with a small graph of their own behind them."""

    def __init__(self, coded: Coded[Any], rank: int, parts: Parts, chosen: Tensor | None) -> None:
        self.coded = coded
        self.rank = rank
        self.parts = parts
        self.chosen = chosen
        self.chunks = coded.exchange.layout.chunks(rank)
        self._pieces: list[Piece] = []

    def pieces(self, decoder: tuple[Tensor, ...]) -> list[Piece]:
        """Rotated K and V of the sender's chunks that this rank's queries may see, without gradients."""
        coded, exchange = self.coded, self.coded.exchange
        last = max(exchange.layout.chunks(exchange.rank))
        with torch.enable_grad():
            key, value = coded.codec.decode(whole(self.parts), decoder)
            if self.chosen is not None:
                key, value = self._placed(key, self.chosen), self._placed(value, self.chosen)
            kept = None if self.chosen is not None else coded.codec.kept(coded.shape)
            rows = zip(self._by_chunk(key), self._by_chunk(value), self.chunks, strict=True)
            for key_BtE, value_BtE, chunk in rows:
                if chunk < last:
                    place = torch.arange(coded.size) if kept is None else kept.cpu()
                    k = exchange.rotated(key_BtE, place + chunk * coded.size)
                    self._pieces.append(Piece(chunk, k, exchange.heads(value_BtE).contiguous(), kept))
        return [Piece(p.chunk, p.key_BGSD.detach(), p.value_BGSD.detach(), p.kept) for p in self._pieces]

    def forget(self) -> None:
        """Keep only the parts: `pieces` is to be asked once more before `gradients`."""
        self._pieces = []

    def gradients(
        self, d_pieces: list[tuple[Tensor, Tensor] | None], decoder: tuple[Tensor, ...]
    ) -> tuple[Parts, list[Tensor | None]]:
        """(gradients of the parts, of the decoder) given those of `pieces`, in the same order."""
        outputs, given = [], []
        for piece, pair in zip(self._pieces, d_pieces, strict=True):
            if pair is not None:
                outputs += [piece.key_BGSD, piece.value_BGSD]
                given += list(pair)
        wanted = [part for part in self.parts if part is not None and part.requires_grad]
        found: list[Any] = [None] * (len(wanted) + len(decoder))
        if outputs and wanted:
            found = list(torch.autograd.grad(outputs, [*wanted, *decoder], given, allow_unused=True))
        self._pieces = []
        left = iter(found)
        parts = tuple(
            _or_zeros(next(left), part) if part is not None and part.requires_grad else None for part in self.parts
        )
        return parts, list(left)

    def _by_chunk(self, x_BtE: Tensor) -> tuple[Tensor, ...]:
        return (x_BtE,) if len(self.chunks) == 1 else x_BtE.unflatten(0, (-1, len(self.chunks))).unbind(1)

    def _placed(self, x_1nE: Tensor, chosen: Tensor) -> Tensor:
        """Tokens that came at their places, zeros elsewhere: no query sees those."""
        rows = self.coded.shape.batch * self.coded.size
        empty = torch.zeros(rows, x_1nE.shape[-1], dtype=x_1nE.dtype, device=x_1nE.device)
        placed = empty.index_copy(0, chosen.to(x_1nE.device), x_1nE.squeeze(0))
        return placed.view(self.coded.shape.batch, self.coded.size, -1)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def added(total: Tensor | None, share: Tensor | None) -> Tensor | None:
    """The sum of two gradients, either of which may be missing."""
    return share if total is None else total if share is None else total + share
