"""A Llama-3 style decoder whose attention is left to an exchange.

RMSNorm, rotary positions, SwiGLU, grouped-query attention, untied embeddings. The model does not know on
how many nodes it runs: every layer hands q, k and v of the tokens it was given, before rotation, to
`exchange.attend`, which knows where those tokens stand and whom else to ask.

Shape letters: B sequences, T tokens here, C model width, E = d_kv, V vocabulary.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed.config import Model

__all__ = ["Attend", "Decoder"]


class Attend(Protocol):
    """What a layer asks of an exchange."""

    def attend(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Tensor:
        """Causal attention of these tokens' queries over every token before them: (B, T, C)."""
        ...


class Layer(nn.Module):
    """Attention and feed-forward, each behind its RMSNorm and around a residual."""

    def __init__(self, model: Model, index: int) -> None:
        super().__init__()
        self.index = index
        self.attention_norm = nn.RMSNorm(model.width, eps=1e-5)
        self.query = nn.Linear(model.width, model.width, bias=False)
        self.key = nn.Linear(model.width, model.kv_width, bias=False)
        self.value = nn.Linear(model.width, model.kv_width, bias=False)
        self.output = nn.Linear(model.width, model.width, bias=False)
        self.ffn_norm = nn.RMSNorm(model.width, eps=1e-5)
        self.gate = nn.Linear(model.width, model.ffn, bias=False)
        self.up = nn.Linear(model.width, model.ffn, bias=False)
        self.down = nn.Linear(model.ffn, model.width, bias=False)

    def forward(self, x_BTC: Tensor, exchange: Attend) -> Tensor:
        h_BTC = self.attention_norm(x_BTC)
        attended = exchange.attend(self.index, self.query(h_BTC), self.key(h_BTC), self.value(h_BTC))
        x_BTC = x_BTC + self.output(attended)
        h_BTC = self.ffn_norm(x_BTC)
        return x_BTC + self.down(F.silu(self.gate(h_BTC)) * self.up(h_BTC))


class Decoder(nn.Module):
    """Token ids (B, T) to logits (B, T, V)."""

    def __init__(self, model: Model, *, seed: int) -> None:
        super().__init__()
        self.config = model
        self.embedding = nn.Embedding(model.vocabulary, model.width)
        self.layers = nn.ModuleList(Layer(model, index) for index in range(model.layers))
        self.norm = nn.RMSNorm(model.width, eps=1e-5)
        self.head = nn.Linear(model.width, model.vocabulary, bias=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        """Normal; deviation 1/√fan-in for matrices and 1 for embeddings.

        At widths of a few hundred this learns to recall within some hundred steps; a deviation of 0.02, which
        suits large models, does not (docs/log.md).
        """
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.embedding.weight, std=1.0, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)

    def forward(self, tokens_BT: Tensor, exchange: Attend) -> Tensor:
        x_BTC = self.embedding(tokens_BT)
        for layer in self.layers:
            x_BTC = layer(x_BTC, exchange)
        return self.head(self.norm(x_BTC))
