"""What the warm start leaves, and every arm begins with."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["WarmStart"]


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What every arm starts from."""

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    """Optimiser state by parameter name."""
    activations: list[Tensor]
    """Of each layer, (tokens, 2·d_kv): [K, V] on short contexts."""
    losses: list[float]
    """This rank's loss of each step."""
    sha256: str
    """Digest of the weights."""
