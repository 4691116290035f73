"""What travels instead of K and V."""

from dataclasses import dataclass
from typing import Literal

from testbed.config.tree import STRICT

__all__ = ["CodecConfig"]


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """What travels instead of K and V."""

    __pydantic_config__ = STRICT

    name: str = "exact"
    """exact, subspace, latent, or a codec of your own (docs/codec.md)."""
    ranks: tuple[int, ...] = ()
    """subspace: (r_K, r_V); latent: (r,)."""
    wire: Literal["fp32", "bf16", "int8", "int4"] = "bf16"
    """How numbers are written on the wire, K,V and, unless `wire_backward` says otherwise, their gradients."""
    wire_backward: Literal["fp32", "bf16", "int8", "int4"] | None = None
    """How gradients are written on their way back; None: as on the way out."""
    own_chunk: Literal["projected", "exact"] = "projected"
    """subspace: whether a node uses its own chunk as the others see it."""
    group: int = 32
    """int8, int4: how many neighbouring numbers share a scale."""
