"""int8 and int4: K and V in groups of small integers, straight through.

Rounding is done by the wire (`testbed.codecs.wire.Integer`); the gradient passes it as if it were not there
(Bengio et al. 2013, arXiv 1308.3432) and is rounded the same way, or as `wire_backward`, on its own way back.

A number that stands out costs its whole group precision, for they share a scale. With `hadamard` each group is
rotated first by an orthogonal H, which spreads such a number over all of them, and rotated back at the receiver
(QuaRot, Ashkboos et al. 2024, arXiv 2404.00456): z → z H on the wire, (z H) Hᵀ = z behind it.
"""

from typing import Any

import torch
from torch import Tensor

from testbed.codecs.base import Encoded
from testbed.codecs.bases import hadamard
from testbed.codecs.exact import Exact
from testbed.config import CodecConfig
from testbed.errors import UsageError

__all__ = ["Quantised"]


class Quantised(Exact):
    """Sends 2·d_kv integers per token, and a scale for each group of them."""

    options = frozenset({"hadamard"})

    def __init__(self, config: CodecConfig, kv_width: int, **place: Any) -> None:
        super().__init__(config, kv_width, **place)
        if config.hadamard:
            if config.group & (config.group - 1) or kv_width % config.group:
                raise UsageError(
                    f"hadamard needs groups of a power of two that divide the width of K, {kv_width}; "
                    f"given group = {config.group}"
                )
            self.register_buffer("rotation", torch.zeros(config.group, config.group))
            with torch.no_grad():
                self.rotation.copy_(hadamard(config.group))

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        parts = (self._rotated(key_BTE), self._rotated(value_BTE))
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=parts)

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        key_BTE, value_BTE = (self._rotated(part) for part in parts)  # H is symmetric: its own inverse
        return key_BTE, value_BTE

    def encode_flops(self, tokens: int) -> float:
        return 2.0 * tokens * 2 * self.kv_width * self.config.group if self.config.hadamard else 0.0

    def decode_flops(self, tokens: int) -> float:
        return self.encode_flops(tokens)

    def _rotated(self, z_BTE: Tensor) -> Tensor:
        if not self.config.hadamard:
            return z_BTE
        return (z_BTE.unflatten(-1, (-1, self.config.group)) @ self.rotation).flatten(-2)
