"""What travels instead of K and V."""

from dataclasses import dataclass, field
from typing import Literal

from testbed.config.tree import STRICT
from testbed.errors import UsageError

__all__ = ["CodecConfig", "SubspaceConfig"]

_WIRES = ("fp32", "bf16", "int8", "int4")
_IMPLIED = {"int8": "int8", "int4": "int4", "best": "int4"}
"""Codecs whose name says how their numbers are written."""
_MOST_GENERATORS = 8


@dataclass(frozen=True, kw_only=True)
class SubspaceConfig:
    """What the paper leaves open, and its ablations (`testbed.codecs.subspace`)."""

    __pydantic_config__ = STRICT

    rotation: Literal["second-order", "exact", "random", "none"] = "second-order"
    """R(θ) to second order or as the whole exponential; with θ drawn once instead of learned; or Ū as it is."""
    generators: int = 1
    """k, the numbers in one θ."""
    normalisation: Literal["spectral", "frobenius"] = "spectral"
    """The norm in which every generator A has size 1."""
    theta: Literal["causal", "literal"] = "causal"
    """θ from the sub-chunk before, or from the whole chunk itself, which shows projected tokens their future."""
    heads: Literal["joint", "per-head"] = "joint"
    """One basis over all K (V) heads, or one for each with an equal share of the rank."""
    start: Literal["weights", "random"] = "weights"
    """Ū from the warm-started weights, or at random."""
    basis: Literal["frozen", "trained"] = "frozen"
    """trained: U is a parameter, kept orthonormal by a QR retraction (rotation = none)."""
    unplug: Literal["fold", "literal"] = "fold"
    """How the codec is unplugged: W ← Ū Ūᵀ W and the projection still sent, or full-width K and V from then on."""
    unplug_at: float | None = None
    """When, as a fraction of the context-parallel steps; None: never."""

    def __post_init__(self) -> None:
        if not 1 <= self.generators <= _MOST_GENERATORS:
            raise UsageError(f"generators = {self.generators}: it must be between 1 and {_MOST_GENERATORS}")
        if self.unplug_at is not None and not 0 < self.unplug_at < 1:
            raise UsageError(f"unplug_at = {self.unplug_at}: it is a fraction of the steps, between 0 and 1")
        if self.basis == "trained" and self.rotation != "none":
            raise UsageError(f"a trained basis is not rotated as well: set rotation = 'none', not '{self.rotation}'")
        if self.basis == "trained" and (self.heads == "per-head" or self.unplug_at is not None):
            raise UsageError("a trained basis is joint over heads and is not unplugged: leave heads and unplug_at")
        if self.rotation == "none" and (self.generators, self.normalisation, self.theta) != (1, "spectral", "causal"):
            raise UsageError("rotation = 'none' has no θ: leave generators, normalisation and theta as they are")
        if self.rotation == "random" and self.theta != "causal":
            raise UsageError("rotation = 'random' looks at no token: leave theta as it is")


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """What travels instead of K and V."""

    __pydantic_config__ = STRICT

    name: str = "exact"
    """exact, int8, int4, topk, subspace, latent, best, pca, recent, random, or a codec of your own (docs/codec.md);
    `+` and a wire after it, as in latent+int4, sets `wire`."""
    ranks: tuple[int, ...] = ()
    """subspace: (r_K, r_V); latent, pca, random: (r,)."""
    wire: Literal["fp32", "bf16", "int8", "int4"] | None = None
    """How numbers are written on the wire, K,V and, unless `wire_backward` says otherwise, their gradients.
    None becomes what the name says, or else bf16."""
    wire_backward: Literal["fp32", "bf16", "int8", "int4"] | None = None
    """How gradients are written on their way back; None: as on the way out."""
    own_chunk: Literal["projected", "exact"] | None = None
    """subspace, latent, random: whether a node uses its own chunk as the others see it.
    None: projected for subspace, as in the paper; exact for all others."""
    final_layer: Literal["compressed", "exact"] = "compressed"
    """Whether the last layer's K and V are compressed too."""
    group: int = 32
    """int8, int4: how many neighbouring numbers share a scale."""
    hadamard: bool = False
    """int8, int4 as codecs: rotate every group by a Hadamard matrix first, so that no number stands out."""
    fraction: float | None = None
    """topk: the share of numbers that travels (0.10); recent: the share of tokens (9/256, the bytes of `best`)."""
    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    """Settings of the codec `subspace`; no other codec uses them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "wire", self.wire or self._named_wire() or "bf16")
        named = self._named_wire()
        if named is not None and named != self.wire:
            raise UsageError(f"the codec '{self.name}' is written as {named}, but wire = '{self.wire}' was given")
        if self.group < 1:
            raise UsageError(f"group = {self.group}: at least 1 number shares a scale")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(f"fraction = {self.fraction}: it must be above 0 and at most 1")

    @property
    def kind(self) -> str:
        """The name without its wire."""
        return self.name.partition("+")[0]

    def _named_wire(self) -> str | None:
        """The wire that the name asks for."""
        kind, plus, wire = self.name.partition("+")
        if plus and wire not in _WIRES:
            raise UsageError(f"'{wire}' in the codec name '{self.name}' is no wire; known are {', '.join(_WIRES)}")
        implied = _IMPLIED.get(kind)
        if plus and implied not in (None, wire):
            raise UsageError(f"the codec '{kind}' is written as {implied}: '{self.name}' names another wire")
        return wire if plus else implied
