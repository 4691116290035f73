"""Bits of tensors: fingerprints, agreement between ranks, and the learning rate."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from testbed.config import Preset
from testbed.errors import RunFailed
from testbed.parallel.transport import Transport

__all__ = ["agree", "digest", "learning_rate"]


def learning_rate(preset: Preset, step: int) -> float:
    """Linear warm-up, then linear decay to the floor, over warm start and context-parallel steps together."""
    total, warm_up = preset.warm_steps + preset.steps, preset.learning_rate_warmup
    decayed = 1 - (1 - preset.learning_rate_floor) * (step - warm_up) / max(1, total - warm_up)
    return preset.learning_rate * min((step + 1) / warm_up, decayed)


def digest(tensors: Iterable[Tensor]) -> bytes:
    """SHA-256 over the bits of tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.digest()


def agree(fingerprint: bytes, transport: Transport, what: str) -> None:
    """Stop unless every rank holds the same bits."""
    if transport.world == 1:
        return
    message = torch.frombuffer(bytearray(fingerprint), dtype=torch.uint8)
    outgoing = [message if other != transport.rank else None for other in range(transport.world)]
    received = transport.exchange(outgoing, {"other": len(fingerprint) * (transport.world - 1)}).wait()
    differing = [
        rank for rank, theirs in enumerate(received) if theirs is not None and not torch.equal(theirs.cpu(), message)
    ]
    if differing:
        raise RunFailed(f"rank {transport.rank} holds other {what} than rank {differing[0]}")
