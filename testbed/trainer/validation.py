"""What a model has learned: losses over held-out sequences, and apart from them what an exchange is for."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from testbed.data.batch import Batch
from testbed.parallel.layout import Layout
from testbed.records import ValidationSums

__all__ = ["add_validation", "judged", "remote_context"]

_SLICE = 8192
"""Tokens whose logits are in memory at once."""


def judged(head: Callable[[Tensor], Tensor], hidden_BTC: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(loss in nats, whether the likeliest token is right) of each token, (B, T); logits are there slice by slice."""
    losses, rights = [], []
    pieces = zip(hidden_BTC.flatten(0, 1).split(_SLICE), labels_BT.flatten().split(_SLICE), strict=True)
    for hidden, labels in pieces:
        logits = head(hidden).float()
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        rights.append(logits.argmax(-1) == labels)
    return torch.cat(losses).view_as(labels_BT), torch.cat(rights).view_as(labels_BT)


def add_validation(total: ValidationSums, loss: Tensor, right: Tensor, batch: Batch, layout: Layout) -> None:
    """Add a batch of whole sequences that is `judged`, on the CPU."""
    chunk = batch.labels.shape[1] // (layout.per_rank * layout.world)
    position, known = np.arange(batch.labels.shape[1])[None], batch.evidence >= 0
    owners = _owners(layout)
    remote = torch.from_numpy(known & (owners[batch.evidence // chunk] != owners[position // chunk]))
    local = torch.from_numpy(known) & ~remote
    counted = torch.from_numpy(batch.counted.copy())
    text = counted & torch.from_numpy(~known)
    for name, chosen in (("", counted), ("text_", text), ("remote_", remote), ("local_", local)):
        setattr(total, f"{name}loss", getattr(total, f"{name}loss") + loss[chosen].double().sum().item())
        setattr(total, f"{name}tokens", getattr(total, f"{name}tokens") + int(chosen.sum()))
    total.remote_right += int(right[remote].sum())
    total.local_right += int(right[local].sum())
    step = np.searchsorted([0, chunk / 4, chunk], remote_context(batch.documents, layout))
    for number in range(4):
        chosen = counted & torch.from_numpy(step == number)
        total.context_loss[number] += loss[chosen].double().sum().item()
        total.context_tokens[number] += int(chosen.sum())


def remote_context(documents_BT: np.ndarray, layout: Layout) -> np.ndarray:
    """(B, T): how many earlier tokens of its own document each token's node does not hold."""
    place = np.arange(documents_BT.shape[1])[None]
    chunk = documents_BT.shape[1] // (layout.per_rank * layout.world)
    begins = np.diff(documents_BT, axis=1, prepend=documents_BT[:, :1]) != 0
    start = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    owners = _owners(layout)
    found = np.zeros(documents_BT.shape, dtype=np.int64)
    for number, owner in enumerate(owners):
        there = np.minimum(place, (number + 1) * chunk) - np.maximum(start, number * chunk)
        found += np.where(owners[place // chunk] != owner, there.clip(min=0), 0)
    return found


def _owners(layout: Layout) -> np.ndarray:
    return np.array([layout.owner(number) for number in range(layout.per_rank * layout.world)])
