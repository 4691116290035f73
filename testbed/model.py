"""A Llama-3 style decoder whose attention is left to an exchange.

RMSNorm, rotary positions, SwiGLU, grouped-query attention, embeddings tied or not. The model does not know on
how many nodes it runs: every layer hands q, k and v of the tokens it was given, before rotation, to
`exchange.begin`, which knows where those tokens stand and whom else to ask.

Shape letters: B sequences, T tokens here, C model width, E = d_kv, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from testbed.config import Model

__all__ = ["Attend", "Decoder"]


class Attend(Protocol):
    """What a layer asks of an exchange."""

    def read(self, decoder: "Decoder", tokens_BT: Tensor) -> None:
        """Called with the tokens before the first layer."""
        ...

    def begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        """Post what must travel. The callable gives causal attention of these tokens' queries over every token before
        them: (B, T, C)."""
        ...


class Layer(nn.Module):
    """Attention and feed-forward, each behind its RMSNorm and around a residual."""

    def __init__(self, model: Model, index: int) -> None:
        super().__init__()
        self.index = index
        self.attention_norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        self.query = nn.Linear(model.width, model.width, bias=False)
        self.key = nn.Linear(model.width, model.kv_width, bias=False)
        self.value = nn.Linear(model.width, model.kv_width, bias=False)
        self.output = nn.Linear(model.width, model.width, bias=False)
        self.ffn_norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        self.gate = nn.Linear(model.width, model.ffn, bias=False)
        self.up = nn.Linear(model.width, model.ffn, bias=False)
        self.down = nn.Linear(model.ffn, model.width, bias=False)

    def project(self, x_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, C), k and v (B, T, E) before rotation."""
        h_BTC = self.attention_norm(x_BTC)
        return self.query(h_BTC), self.key(h_BTC), self.value(h_BTC)

    def feed_forward(self, x_BTC: Tensor, attended_BTC: Tensor) -> Tensor:
        """What the layer gives, from its input and attention's result."""
        x_BTC = x_BTC + self.output(attended_BTC)
        h_BTC = self.ffn_norm(x_BTC)
        return x_BTC + self.down(F.silu(self.gate(h_BTC)) * self.up(h_BTC))


class Decoder(nn.Module):
    """Token ids (B, T) to logits (B, T, V)."""

    def __init__(self, model: Model, *, seed: int) -> None:
        super().__init__()
        self.config = model
        self.recompute = False
        self.embedding = nn.Embedding(model.vocabulary, model.width)
        self.layers: Any = nn.ModuleList(Layer(model, index) for index in range(model.layers))
        self.norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        self.head = nn.Linear(model.width, model.vocabulary, bias=False)
        self._initialise(seed)
        if model.tied:
            self.head.weight = self.embedding.weight

    def _initialise(self, seed: int) -> None:
        """Normal; deviation 1/√fan-in for matrices and 1 for embeddings.

        At widths of a few hundred this learns to recall within some hundred steps; a deviation of 0.02, which
        suits large models, does not (docs/log.md).
        """
        generator = torch.Generator().manual_seed(seed)
        # tied, it is the output's matrix as well; the first norm makes its size irrelevant at the input
        deviation = self.config.width**-0.5 if self.config.tied else 1.0
        nn.init.normal_(self.embedding.weight, std=deviation, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)

    def forward(self, tokens_BT: Tensor, exchange: Attend) -> Tensor:
        return self.interleaved([tokens_BT], [exchange])[0]

    def interleaved(self, tokens: Sequence[Tensor], exchanges: Sequence[Attend]) -> list[Tensor]:
        """Logits of several batches that take turns, layer by layer: while one's exchange is under way the others
        compute. `recompute` never repeats an exchange: it spans what lies between two of them."""
        return [self.head(h_BTC) for h_BTC in self.hidden(tokens, exchanges)]

    def hidden(self, tokens: Sequence[Tensor], exchanges: Sequence[Attend]) -> list[Tensor]:
        """What `head` makes logits of, (B, T, C), of batches that take turns."""
        for exchange, tokens_BT in zip(exchanges, tokens, strict=True):
            exchange.read(self, tokens_BT)
        states = [self.embedding(tokens_BT) for tokens_BT in tokens]
        for layer in self.layers:
            posted = [
                exchange.begin(layer.index, *self._segment(layer.project, x_BTC))
                for exchange, x_BTC in zip(exchanges, states, strict=True)
            ]
            states = [
                self._segment(layer.feed_forward, x_BTC, attended())
                for attended, x_BTC in zip(posted, states, strict=True)
            ]
        return [self.norm(x_BTC) for x_BTC in states]

    def _segment(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return function(*inputs)
