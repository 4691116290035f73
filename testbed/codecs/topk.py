"""`topk`: of each token's [K, V] the numbers of largest magnitude travel, and where they stood.

m = fraction · 2·d_kv values per token go out in the wire's format and their places as the smallest of three:
one byte each (2·d_kv ≤ 256), two bytes each, or a mask of 2·d_kv bits:

    places per token = min(m · (1 or 2), ⌈2·d_kv / 8⌉) bytes.

A mask is smaller than two bytes each from 1/16 of the numbers on. The gradient of the values comes back in the
same order; the places are known to the owner and do not travel again. That is the exact adjoint of choosing m
numbers: what did not travel has no gradient from other nodes.
"""

from typing import Any

import torch
from torch import Tensor

from testbed.codecs.base import Codec, Encoded, Shape, Wire
from testbed.codecs.wire import Indices
from testbed.config import CodecConfig
from testbed.errors import UsageError

__all__ = ["TopK"]

_FRACTION = 0.10


class TopK(Codec):
    """Sends `count` numbers and places per token."""

    token_wise = True
    options = frozenset({"fraction"})

    def __init__(self, config: CodecConfig, kv_width: int, **place: Any) -> None:
        super().__init__(config, kv_width, **place)
        if 2 * kv_width > 2**16:
            raise UsageError(f"topk writes places in 16 bits: K and V together can be {2**16} wide, not {2 * kv_width}")
        self.count = max(1, round(2 * kv_width * (config.fraction or _FRACTION)))

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        size = (shape.batch, shape.tokens, self.count)
        return self.wire(*size), Wire(shape=size, format=Indices(2 * self.kv_width), returned=False)

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        kv_BTF = torch.cat((key_BTE, value_BTE), dim=-1)
        places_BTM = kv_BTF.detach().abs().topk(self.count, dim=-1).indices.sort(dim=-1).values
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(kv_BTF.gather(-1, places_BTM), places_BTM))

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        values_BTM, places_BTM = parts
        zeros_BTF = values_BTM.new_zeros(*values_BTM.shape[:-1], 2 * self.kv_width)
        key_BTE, value_BTE = zeros_BTF.scatter(-1, places_BTM, values_BTM).chunk(2, dim=-1)
        return key_BTE, value_BTE

    def encode_flops(self, tokens: int) -> float:
        """One comparison per number: a selection, not a sort."""
        return 1.0 * tokens * 2 * self.kv_width
