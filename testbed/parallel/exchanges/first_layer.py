"""The first layer's K and V are made of token ids, deeper layers' travel: 1/L of an exact exchange's bytes less.

In a model of this kind the first layer's K and V are a function of the token's id alone, so every rank can make the
others' from their ids and its own weights (`testbed.parallel.exchanges.ids`), for two bytes a token. That is exact
where all ranks hold the same weights, and so are the gradients: each rank's share of the first layer's flows into its
own copy of the weights, and the shares are summed with all others. Nothing of that layer travels back.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from torch import Tensor

from testbed.codecs import Direction
from testbed.config.arm import IdsConfig
from testbed.parallel.exchanges.base import Exchange, Traffic
from testbed.parallel.exchanges.ids import Ids

if TYPE_CHECKING:
    from testbed.model import Decoder

__all__ = ["FirstLayerByIds"]


class FirstLayerByIds(Exchange):
    """`deeper` for every layer but the first."""

    def __init__(self, deeper: Exchange) -> None:
        super().__init__(deeper.model, [], deeper.transport, layout=deeper.layout)
        self._first = Ids(deeper.model, IdsConfig(layers=1), deeper.transport, layout=deeper.layout)
        self._deeper = deeper
        self.begins_early, self.bytes_follow_documents = deeper.begins_early, deeper.bytes_follow_documents

    def _of(self, layer: int) -> Exchange:
        return self._first if layer == 0 else self._deeper

    def on(self, documents_BT: Tensor | None) -> Self:
        mine = super().on(documents_BT)
        mine._first, mine._deeper = self._first.on(documents_BT), self._deeper.on(documents_BT)
        return mine

    def traffic(self, layer: int, direction: Direction, batch: int, context: int) -> Traffic:
        return self._of(layer).traffic(layer, direction, batch, context)

    def read(self, decoder: "Decoder", tokens_BT: Tensor) -> None:
        self._first.read(decoder, tokens_BT)

    def _begin(self, layer: int, q_BTC: Tensor, k_BTE: Tensor, v_BTE: Tensor) -> Callable[[], Tensor]:
        return self._of(layer)._begin(layer, q_BTC, k_BTE, v_BTE)
