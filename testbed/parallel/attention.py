"""Attention over blocks of keys, and how partial results are put together.

A block's result is (out, lse): the softmax-weighted values and the natural logarithm of the softmax's
denominator, both over this block alone. Two blocks merge by

    lse = logaddexp(lse_1, lse_2),   out = exp(lse_1 − lse) · out_1 + exp(lse_2 − lse) · out_2

(Milakov & Gimelshein 2018, arXiv 1805.02867; Liu et al. 2023, arXiv 2310.01889). The same identity gives the
backward pass: with the merged out and lse, each block's gradients come out right on their own.

A mask is True (causal, T = S, the i-th query at the i-th key), False (every key is seen), or a (B, 1, T, S) tensor
that is added to the scores: 0 where a key is seen, −∞ where not.

Shape letters: B sequences, H query heads, G key/value heads, T queries, S keys, D head width.
"""

import math

import torch
from torch import Tensor

__all__ = ["Mask", "block_attention", "block_attention_backward", "merge", "rotary_tables", "rotate", "split_heads"]

Mask = bool | Tensor
_TILE = 2048

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_heads(x_BTE: Tensor, head_width: int) -> Tensor:
    """(B, T, heads·D) to (B, heads, T, D)."""
    return x_BTE.unflatten(-1, (-1, head_width)).transpose(1, 2)


def rotary_tables(positions: Tensor, head_width: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, (tokens, D), of absolute `positions` (Su et al. 2021, arXiv 2104.09864, half-split)."""
    frequency = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.outer(positions.double().cpu(), frequency).repeat(1, 2)
    return angle.cos().to(like), angle.sin().to(like)


def rotate(x_BHTD: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x at the positions of `tables`."""
    cos_TD, sin_TD = tables
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD


def block_attention(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """(out_BHTD, lse_BHT) of these queries over this block of keys; (0, −∞) where a query sees nothing of it."""
    if q_BHTD.device.type == "cpu":
        additive = None if isinstance(mask, bool) else mask
        out, lse = _flash(q_BHTD, k_BGSD, v_BGSD, 0.0, mask is True, attn_mask=additive)
        if additive is not None:  # the kernel answers (0, 0) there, which would count as a key of score 0
            lse = lse.masked_fill((additive == -torch.inf).all(-1), -torch.inf)
        return out, lse
    return _tiled(q_BHTD, k_BGSD, v_BGSD, mask)


def block_attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Mask
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) of this block, given the merged `out` and `lse` of all blocks."""
    if q.device.type == "cpu":
        additive = None if isinstance(mask, bool) else mask
        return _flash_backward(d_out, q, k, v, out, lse, 0.0, mask is True, attn_mask=additive)
    return _tiled_backward(d_out, q, k, v, out, lse, mask)


# Where there is no flash kernel that gives its softmax's denominator in fp32: written out, tile by tile, in fp32.


def _tiled(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    results = []
    for rows in _spans(q.shape[2]):
        q_tile = q[:, :, rows].float()
        seen = torch.zeros_like(q_tile), q_tile.new_full(q_tile.shape[:-1], -torch.inf)
        for columns in _spans(k.shape[2], mask, rows.stop):
            scores = _scores(q_tile, k[:, :, columns], mask, rows, columns)
            lse = torch.logsumexp(scores, dim=-1)
            seen = merge(seen, (_weights(scores, lse) @ v[:, :, columns].float().repeat_interleave(group, 1), lse))
        results.append(seen)
    return torch.cat([out for out, _ in results], 2), torch.cat([lse for _, lse in results], 2)


def _tiled_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Mask
) -> tuple[Tensor, Tensor, Tensor]:
    heads, scale = k.shape[1], math.sqrt(q.shape[-1])
    group = q.shape[1] // heads
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
    for rows in _spans(q.shape[2]):
        q_tile, d_tile = q[:, :, rows].float(), d_out[:, :, rows].float()
        dot = (d_tile * out[:, :, rows].float()).sum(-1, keepdim=True)
        for columns in _spans(k.shape[2], mask, rows.stop):
            k_tile, v_tile = (x[:, :, columns].float().repeat_interleave(group, 1) for x in (k, v))
            weights = _weights(_scores(q_tile, k[:, :, columns], mask, rows, columns), lse[:, :, rows])
            d_scores = weights * (d_tile @ v_tile.transpose(-1, -2) - dot) / scale
            dq[:, :, rows] += d_scores @ k_tile
            dk[:, :, columns] += (d_scores.transpose(-1, -2) @ q_tile).unflatten(1, (heads, group)).sum(2)
            dv[:, :, columns] += (weights.transpose(-1, -2) @ d_tile).unflatten(1, (heads, group)).sum(2)
    return dq.to(q), dk.to(k), dv.to(v)


def _spans(length: int, mask: Mask = False, seen: int | None = None) -> list[slice]:
    """Tiles of an axis; of keys, only those that a query before `seen` may see."""
    stop = min(length, seen) if mask is True and seen is not None else length
    return [slice(start, min(start + _TILE, stop)) for start in range(0, stop, _TILE)]


def _scores(q: Tensor, k: Tensor, mask: Mask, rows: slice, columns: slice) -> Tensor:
    """q kᵀ/√D of one tile, −∞ where a query does not see a key."""
    group = q.shape[1] // k.shape[1]
    scores = q @ k.float().repeat_interleave(group, 1).transpose(-1, -2) / math.sqrt(q.shape[-1])
    if isinstance(mask, Tensor):
        return scores + mask[..., rows, columns]
    if mask:
        here = torch.arange(rows.start, rows.stop, device=q.device)
        there = torch.arange(columns.start, columns.stop, device=q.device)
        scores = scores.masked_fill(there > here.unsqueeze(-1), -torch.inf)
    return scores


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    return (scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)).exp()


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The result over both blocks; see the head of this module."""
    (out_1, lse_1), (out_2, lse_2) = first, second
    lse = torch.logaddexp(lse_1, lse_2)
    base = lse.masked_fill(lse == -torch.inf, 0.0)  # neither block seen: both weights are exp(−∞) = 0
    out = out_1 * (lse_1 - base).exp().unsqueeze(-1) + out_2 * (lse_2 - base).exp().unsqueeze(-1)
    return out, lse
