"""How K and V, or what stands for them, reach the other ranks: one file each, one interface (`base.Exchange`)."""

from collections.abc import Sequence

from testbed.codecs import Codec
from testbed.config import Arm, Model
from testbed.config.plugged import plugged
from testbed.parallel.exchanges.all_gather import AllGather, MaskAware
from testbed.parallel.exchanges.base import Alone, Exchange, Pacer, Traffic, Unpaced
from testbed.parallel.exchanges.first_layer import FirstLayerByIds
from testbed.parallel.exchanges.ids import ID_BYTES, Ids, made_flops
from testbed.parallel.exchanges.in_process import InProcess
from testbed.parallel.exchanges.local import Local
from testbed.parallel.exchanges.ring import Ring
from testbed.parallel.exchanges.ulysses import Ulysses
from testbed.parallel.layout import Layout
from testbed.parallel.transport import Transport

__all__ = [
    "ID_BYTES",
    "AllGather",
    "Alone",
    "Exchange",
    "FirstLayerByIds",
    "Ids",
    "InProcess",
    "Local",
    "MaskAware",
    "Pacer",
    "Ring",
    "Traffic",
    "Ulysses",
    "Unpaced",
    "made_flops",
    "make_exchange",
]

_KINDS: dict[str, type[Exchange]] = {
    "all-gather": AllGather,
    "mask-aware": MaskAware,
    "ring": Ring,
    "ulysses": Ulysses,
    "local": Local,
}


def make_exchange(arm: Arm, model: Model, codecs: Sequence[Codec], transport: Transport | Alone | None) -> Exchange:
    """The exchange that an arm names, over no ranks but this one without a transport.

    Raises `UsageError` where model, codec or number of ranks do not suit it.
    """
    layout = Layout(arm.layout, transport.world if transport else 1)
    if arm.exchange == "ids":
        return Ids(model, arm.ids, transport, layout=layout)
    kind = _KINDS.get(arm.exchange) or _installed(arm.exchange)
    exchange = kind(model, codecs, transport, layout=layout, overlap=arm.overlap)
    return FirstLayerByIds(exchange) if arm.first_layer == "ids" else exchange


def _installed(name: str) -> type[Exchange]:
    """The exchange that an installed package adds by this name (`Arm` has checked that one does)."""
    entry = plugged("exchanges", name)
    assert entry is not None, name
    return entry.load()
