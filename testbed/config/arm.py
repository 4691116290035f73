"""One trainer in a comparison: exchange, codec, synchronisation, link; and the arms that have a name."""

from dataclasses import dataclass, field
from typing import Literal

from testbed.config.codec import CodecConfig
from testbed.config.plugged import check_known
from testbed.config.tree import STRICT, at_least
from testbed.errors import UsageError

__all__ = ["EXCHANGES", "OWN_REPLICAS", "PACED", "STANDARD_ARMS", "Arm", "IdsConfig", "LayoutName", "WeightSync"]

EXCHANGES = ("all-gather", "mask-aware", "ring", "ulysses", "local", "ids")
"""Ours; installed packages add others (docs/exchanges.md)."""
PACED = ("all-gather", "local", "ids")
"""Exchanges whose messages at a target's size are known (`testbed.pace`)."""
LayoutName = Literal["contiguous", "zigzag"]
OWN_REPLICAS = (
    "only attention's weights are averaged, so no two ranks hold the same model: each rank's is validated by itself, "
    "in place of all ranks', and the mean over ranks is given"
)
"""Printed beside the validation losses of an arm that averages its attention weights alone."""


@dataclass(frozen=True, kw_only=True)
class WeightSync:
    """How gradients or weights travel between ranks, whenever they do."""

    __pydantic_config__ = STRICT

    wire: Literal["fp32", "bf16", "int8"] = "fp32"
    """How numbers are written; averaged weights as differences to what all ranks last agreed on."""
    scope: Literal["all", "attention"] = "all"
    """attention: only attention's projections (and the codec) are averaged; the rest of the replicas drift apart, and
    what is validated is each rank's replica by itself, not the mix of them that was trained."""
    outer_momentum: float = 0.0
    """Above 0, what all ranks moved since they last agreed is a gradient for Nesterov momentum (DiLoCo, arXiv
    2311.08105, where it is 0.9)."""
    outer_learning_rate: float = 1.0
    """Of that outer step; 1 without momentum is plain averaging (DiLoCo: 0.7)."""

    def __post_init__(self) -> None:
        at_least(0, outer_momentum=self.outer_momentum, outer_learning_rate=self.outer_learning_rate)
        if self.outer_momentum >= 1:
            raise UsageError(f"outer_momentum = {self.outer_momentum}: it must be below 1")


@dataclass(frozen=True, kw_only=True)
class IdsConfig:
    """What a rank makes of the others' token ids (`testbed.parallel.exchanges.ids`)."""

    __pydantic_config__ = STRICT

    layers: int = 1
    """Of how many layers, from the first on, it makes K and V; 0: of all."""
    window: int | Literal["chunk"] = 0
    """To how many tokens before it, within its chunk, a token attends there; chunk: to all of them."""

    def __post_init__(self) -> None:
        at_least(0, layers=self.layers)
        if self.window != "chunk":
            at_least(0, window=self.window)

    def depth(self, layers: int) -> int:
        """How many of a model's layers that is; raises `UsageError` where it has fewer."""
        if self.layers > layers:
            raise UsageError(f"ids.layers = {self.layers}: the model has {layers}; type 0 for all")
        return self.layers or layers


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One trainer in a comparison."""

    __pydantic_config__ = STRICT

    name: str
    exchange: str
    """How K and V reach the other ranks; `local` is no exchange at all, `ids` sends token ids only."""
    layout: LayoutName = "contiguous"
    """Which tokens of a sequence each rank holds."""
    overlap: bool = True
    """Whether the exchange travels while the rank computes, or computing waits for it."""
    interleave: bool = False
    """Two halves of the batch in turns, so that one's exchange is hidden behind the other's computation."""
    split: Literal["sequence", "batch"] = "sequence"
    """What the ranks share out: every sequence (context parallelism), or the batch: whole sequences, no exchange."""
    codec: CodecConfig = field(default_factory=CodecConfig)
    ids: IdsConfig = field(default_factory=IdsConfig)
    """Settings of the exchange `ids`; no other exchange uses them."""
    first_layer: Literal["exchanged", "ids"] = "exchanged"
    """Whether the first layer's K and V travel as the others' do, or every rank makes them from token ids."""
    sync: Literal["gradients", "average"]
    """All-reduce the gradients every step, or average the weights every `sync_every` steps."""
    weights: WeightSync = field(default_factory=WeightSync)
    """How gradients or weights travel."""
    link: Literal["fast", "bw"]
    """`fast` is the cluster's link (100gbit), `bw` the link under test."""

    def __post_init__(self) -> None:
        check_known("exchanges", self.exchange, EXCHANGES)
        if self.split == "batch" and self.exchanges:
            raise UsageError(
                f"arm '{self.name}': whole sequences need no exchange; with split = 'batch' type exchange = 'local'"
            )
        if self.exchange != "ids" and self.ids != IdsConfig():
            raise UsageError(
                f"arm '{self.name}': the table ids is of the exchange 'ids', which is '{self.exchange}' here"
            )
        if self.exchange == "ids" and self.codec != CodecConfig():
            raise UsageError(f"arm '{self.name}': the exchange 'ids' sends no K and V to encode: leave out the codec")
        if self.first_layer == "ids":
            self._check_first_layer()
        if self.sync == "gradients" and self.weights != WeightSync(wire=self.weights.wire):
            raise UsageError(
                f"arm '{self.name}': scope, outer_momentum and outer_learning_rate are of averaged weights; leave them "
                "out where sync = 'gradients'"
            )

    def _check_first_layer(self) -> None:
        """It is exact where K and V travel as they are, and all ranks hold the same weights."""
        given = f"arm '{self.name}': first_layer = 'ids'"
        if self.exchange not in ("all-gather", "mask-aware", "ring"):
            raise UsageError(f"{given} is of all-gather, mask-aware and ring, and the exchange is '{self.exchange}'")
        if self.codec.kind != "exact":
            raise UsageError(f"{given} is of exact K and V: leave out the codec '{self.codec.name}'")
        if self.sync != "gradients":
            raise UsageError(
                f"{given} is exact only while all ranks hold the same weights, and averaged ones differ in between: "
                "type sync = 'gradients'"
            )

    @property
    def exchanges(self) -> bool:
        """Whether ranks tell each other anything of their tokens."""
        return self.exchange != "local"

    @property
    def sends_kv(self) -> bool:
        """Whether K and V travel, as they are or encoded, and not token ids alone."""
        return self.exchange not in ("local", "ids")

    @property
    def made_of_ids(self) -> IdsConfig | None:
        """What a rank makes of the others' token ids, if anything."""
        if self.first_layer == "ids":
            return IdsConfig(layers=1)
        return self.ids if self.exchange == "ids" else None

    @property
    def caution(self) -> str | None:
        """What whoever reads its validations must know, if anything."""
        return OWN_REPLICAS if self.weights.scope == "attention" else None


STANDARD_ARMS = ("centralised", "decentralised", "subspace", "latent", "control")
