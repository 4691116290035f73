"""K and V as they are, rounded to the wire's format: the uncompressed reference."""

from torch import Tensor

from testbed.codecs.base import Codec, Encoded, Shape, Wire

__all__ = ["Exact"]


class Exact(Codec):
    """Sends 2·d_kv numbers per token."""

    token_wise = True

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        wire = self.wire(shape.batch, shape.tokens, self.kv_width)
        return wire, wire

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(key_BTE, value_BTE))

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        key_BTE, value_BTE = parts
        return key_BTE, value_BTE
