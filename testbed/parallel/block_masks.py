"""Which keys a rank's queries see, chunk by chunk, and attention over pieces of the sequence as they arrive.

Chunks are the grain: a query sees every chunk before its own whole, and its own causally. Only where documents
must not see one another does a mask go token by token.

Shape letters: B sequences, H query heads, G K/V heads, T queries, S keys, D head width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.parallel.attention import Mask, block_attention, block_attention_backward, merge
from testbed.parallel.layout import Layout

__all__ = ["Piece", "Sight"]

Partial = tuple[Tensor, Tensor]
"""(out_BHTD, lse_BHT) over the keys seen so far."""


@dataclass(frozen=True)
class Piece:
    """Rotated K and V of one chunk, or of those of its tokens that travelled."""

    chunk: int
    key_BGSD: Tensor
    value_BGSD: Tensor
    kept: Tensor | None = None
    """Which tokens of the chunk these are; None: all."""


class Sight:
    """What the queries of one rank see of a batch."""

    def __init__(self, layout: Layout, rank: int, context: int, documents_BT: Tensor | None = None) -> None:
        self.chunks = layout.chunks(rank)
        self.size = context // (layout.per_rank * layout.world)
        self._documents = documents_BT
        self._masks: dict[tuple[int, ...], Mask | None] = {}

    def attend(self, q_BHTD: Tensor, pieces: Sequence[Piece], seen: list[Partial] | None = None) -> list[Partial]:
        """Attention of each own chunk's queries over `pieces`, merged with what was `seen` before."""
        queries = q_BHTD.split(self.size, dim=2)
        merged: list[Partial | None] = list(seen) if seen is not None else [None] * len(queries)
        for slot, members, mask in self._groups(pieces, q_BHTD):
            key, value = _joined([pieces[i] for i in members])
            partial = block_attention(queries[slot], key, value, mask)
            before = merged[slot]
            merged[slot] = partial if before is None else merge(before, partial)
        found = [one for one in merged if one is not None]
        assert len(found) == len(merged), "a rank attends to its own chunks first"
        return found

    def backward(
        self, d_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, pieces: Sequence[Piece]
    ) -> tuple[Tensor, list[Partial | None]]:
        """(dq, and (dk, dv) of each piece, None where nothing of it was seen), from merged `out` and `lse`."""
        dq = torch.zeros_like(q)
        d_pieces: list[Partial | None] = [None] * len(pieces)
        parts = [tensor.split(self.size, dim=2) for tensor in (d_out, q, out, lse, dq)]
        for slot, members, mask in self._groups(pieces, q):
            d_here, q_here, out_here, lse_here, dq_here = (part[slot] for part in parts)
            key, value = _joined([pieces[i] for i in members])
            dq_block, dk, dv = block_attention_backward(d_here, q_here, key, value, out_here, lse_here, mask)
            dq_here += dq_block
            sizes = [pieces[i].key_BGSD.shape[2] for i in members]
            for i, dk_one, dv_one in zip(members, dk.split(sizes, 2), dv.split(sizes, 2), strict=True):
                before = d_pieces[i]
                d_pieces[i] = (dk_one, dv_one) if before is None else (before[0] + dk_one, before[1] + dv_one)
        return dq, d_pieces

    def _groups(self, pieces: Sequence[Piece], like: Tensor) -> Iterator[tuple[int, list[int], Mask]]:
        """(own chunk's slot, pieces that it sees together, their mask)."""
        for slot, chunk in enumerate(self.chunks):
            for members in (
                [i for i, piece in enumerate(pieces) if piece.chunk == chunk],
                [i for i, piece in enumerate(pieces) if piece.chunk < chunk],
            ):
                if members and (mask := self._mask(chunk, [pieces[i] for i in members], like)) is not None:
                    yield slot, members, mask

    def _mask(self, chunk: int, pieces: list[Piece], like: Tensor) -> Mask | None:
        """None where not a single key is seen."""
        own = pieces[0].chunk == chunk
        if self._documents is None:
            return own
        known = (chunk, *(number for piece in pieces for number in (piece.chunk, piece.key_BGSD.shape[2])))
        if known not in self._masks:
            here = self._span(chunk)
            there = torch.cat([self._span(p.chunk) if p.kept is None else self._span(p.chunk)[p.kept] for p in pieces])
            documents = self._documents
            visible = documents[:, here, None] == documents[:, None, there]
            visible &= there <= here.unsqueeze(-1)
            additive = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
            additive.masked_fill_(~visible.to(like.device), -torch.inf)
            self._masks[known] = additive.unsqueeze(1) if visible.any() else None
        return self._masks[known]

    def _span(self, chunk: int) -> Tensor:
        return torch.arange(chunk * self.size, (chunk + 1) * self.size)


def _joined(pieces: list[Piece]) -> Partial:
    if len(pieces) == 1:
        return pieces[0].key_BGSD, pieces[0].value_BGSD
    return torch.cat([p.key_BGSD for p in pieces], dim=2), torch.cat([p.value_BGSD for p in pieces], dim=2)
