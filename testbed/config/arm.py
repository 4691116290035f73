"""One trainer in a comparison: exchange, codec, synchronisation, link."""

from dataclasses import dataclass, field
from typing import Literal

from testbed.config.codec import CodecConfig
from testbed.config.tree import STRICT

__all__ = ["STANDARD_ARMS", "Arm"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One trainer in a comparison."""

    __pydantic_config__ = STRICT

    name: str
    exchange: Literal["all-gather", "local"]
    codec: CodecConfig = field(default_factory=CodecConfig)
    sync: Literal["gradients", "average"]
    """All-reduce the gradients every step, or average the weights every `sync_every` steps."""
    link: Literal["fast", "bw"]
    """`fast` is the cluster's link (100gbit), `bw` the link under test."""


STANDARD_ARMS = ("centralised", "decentralised", "subspace", "latent", "control")
