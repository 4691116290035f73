"""K and V as they are, rounded to the wire's dtype: the uncompressed reference."""

from torch import Tensor

from testbed.codecs.base import Codec, Encoded, Shape, Wire
from testbed.codecs.wire import wire_format

__all__ = ["Exact"]


class Exact(Codec):
    """Sends 2·d_kv numbers per token."""

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        size = (shape.batch, shape.tokens, self.kv_width)
        wire = Wire(shape=size, format=wire_format(self.config.wire, self.config.group))
        return wire, wire

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(key_BTE, value_BTE))

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        key_BTE, value_BTE = parts
        return key_BTE, value_BTE
