"""The shape of the model."""

from dataclasses import dataclass

from testbed.config.tree import STRICT, at_least
from testbed.errors import UsageError

__all__ = ["Model"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shape of a Llama-3 style decoder."""

    __pydantic_config__ = STRICT

    vocabulary: int
    """Number of token ids."""
    width: int
    """d, the width of the residual stream."""
    layers: int
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    ffn: int
    """Inner width of the SwiGLU."""
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False
    """Whether the output uses the embedding's weights."""

    def __post_init__(self) -> None:
        at_least(1, vocabulary=self.vocabulary, width=self.width, layers=self.layers, heads=self.heads)
        at_least(1, kv_heads=self.kv_heads, ffn=self.ffn, rope_base=self.rope_base)
        if self.width % self.heads or self.heads % self.kv_heads or (self.width // self.heads) % 2:
            raise UsageError(
                f"a width of {self.width} with {self.heads} heads and {self.kv_heads} K/V heads does not divide: "
                "heads must divide the width into an even number, and K/V heads must divide the heads"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """d_kv, the width of K (or V) over all its heads."""
        return self.kv_heads * self.head_width

    @property
    def parameters(self) -> int:
        """Trained numbers: embeddings, layers, norms."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_width
        layer = attention + 3 * self.width * self.ffn + 2 * self.width
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        return embeddings + self.layers * layer + self.width
