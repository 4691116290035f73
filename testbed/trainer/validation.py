"""What a model has learned: losses over held-out sequences, and apart from them what an exchange is for."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from testbed.data.batch import Batch
from testbed.parallel.layout import Layout

__all__ = ["Validation", "add_validation"]


@dataclass(kw_only=True)
class Validation:
    """Sums over validation tokens, in nats; they add up over ranks."""

    loss: float = 0.0
    tokens: int = 0
    text_loss: float = 0.0
    text_tokens: int = 0
    remote_loss: float = 0.0
    remote_tokens: int = 0
    """Tokens whose evidence lies in another chunk than they do."""
    remote_right: int = 0
    local_loss: float = 0.0
    local_tokens: int = 0
    """Tokens whose evidence lies in their own chunk."""
    local_right: int = 0


def add_validation(total: Validation, logits: Tensor, batch: Batch, layout: Layout) -> None:
    """Add a batch of whole sequences, (B, T, V) logits on the CPU."""
    labels = torch.from_numpy(batch.labels.copy())
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    chunk = batch.labels.shape[1] // (layout.per_rank * layout.world)
    position, known = np.arange(batch.labels.shape[1])[None], batch.evidence >= 0
    remote = torch.from_numpy(known & (batch.evidence // chunk < position // chunk))
    local = torch.from_numpy(known) & ~remote
    counted = torch.from_numpy(batch.counted.copy())
    text = counted & torch.from_numpy(~known)
    right = logits.argmax(-1) == labels
    for name, chosen in (("", counted), ("text_", text), ("remote_", remote), ("local_", local)):
        setattr(total, f"{name}loss", getattr(total, f"{name}loss") + loss[chosen].double().sum().item())
        setattr(total, f"{name}tokens", getattr(total, f"{name}tokens") + int(chosen.sum()))
    total.remote_right += int(right[remote].sum())
    total.local_right += int(right[local].sum())
