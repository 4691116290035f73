"""The nodes that small trainers stand for, as data: `experiments/targets/*.toml`. Imports no torch."""

from dataclasses import dataclass

from pydantic import ConfigDict

from testbed.config import at_least
from testbed.errors import UsageError

__all__ = ["Target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A node of the system that is stood for, and the training it takes part in. Sources stand in the TOML."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    nodes: int
    tokens_per_node: int
    layers: int
    width: int
    kv_width: int
    ffn: int
    parameters: int
    wire_bytes: int
    """Bytes per number of the weights when they are synchronised."""
    forward_seconds: float
    """Seconds of one layer on one node."""
    backward_seconds: float
    subspace_ranks: tuple[int, int]
    latent_rank: int
    fast_rate: str
    """The link of the cluster that slow links are compared with, as text ("100gbit")."""

    def __post_init__(self) -> None:
        at_least(2, nodes=self.nodes)
        at_least(1, tokens_per_node=self.tokens_per_node, layers=self.layers, width=self.width, ffn=self.ffn)
        at_least(1, kv_width=self.kv_width, parameters=self.parameters, wire_bytes=self.wire_bytes)
        at_least(1, latent_rank=self.latent_rank, subspace_rank=min(self.subspace_ranks))
        at_least(1e-3, forward_seconds=self.forward_seconds, backward_seconds=self.backward_seconds)
        if max(self.subspace_ranks) > self.kv_width or self.latent_rank > 2 * self.kv_width:
            raise UsageError(
                f"ranks {self.subspace_ranks} and {self.latent_rank} do not fit kv_width = {self.kv_width}"
            )

    @property
    def compute_seconds(self) -> float:
        """Seconds of one step on one node, without a codec."""
        return self.layers * (self.forward_seconds + self.backward_seconds)

    def layer_flops(self, context: int) -> float:
        """Of one node's forward pass through one layer, with `context` tokens in each sequence.

        Two per multiply-add: projections 2·(2d² + 2·d·d_kv), SwiGLU 6·d·d_ffn per token, and causal attention
        4·d for each of the context/2 keys that a token sees on average (Kaplan et al. 2020, table 1).
        """
        linear = 4 * self.width * (self.width + self.kv_width) + 6 * self.width * self.ffn
        return self.tokens_per_node * (linear + 4 * self.width * context / 2)

    @property
    def flops_per_second(self) -> float:
        """What the published step time means for the forward pass; a codec's FLOPs are charged at this rate."""
        return self.layer_flops(self.nodes * self.tokens_per_node) / self.forward_seconds

    def short_step_seconds(self) -> float:
        """Compute of a warm-start step: each node's tokens form a sequence of their own. Modelled."""
        share = self.layer_flops(self.tokens_per_node) / self.layer_flops(self.nodes * self.tokens_per_node)
        return self.compute_seconds * share
