"""What travels instead of K and V. One file per codec, one interface (`testbed.codecs.base.Codec`)."""

from importlib.metadata import entry_points

from testbed.codecs.base import Codec, Direction, Shape, Wire
from testbed.codecs.exact import Exact
from testbed.codecs.latent import Latent
from testbed.codecs.subspace import Subspace
from testbed.config import CodecConfig
from testbed.errors import UsageError

__all__ = ["Codec", "Direction", "Shape", "Wire", "codec_names", "make_codec"]

_OURS: dict[str, type[Codec]] = {"exact": Exact, "subspace": Subspace, "latent": Latent}


def codec_names() -> list[str]:
    """Every codec that can be named: ours, and those that installed packages add."""
    return sorted({*_OURS, *(entry.name for entry in entry_points(group="testbed.codecs"))})


def make_codec(config: CodecConfig, kv_width: int, *, layer: int, seed: int) -> Codec:
    """The codec of one layer; every node makes the same one."""
    if config.name in _OURS:
        return _OURS[config.name](config, kv_width, layer=layer, seed=seed)
    for entry in entry_points(group="testbed.codecs"):
        if entry.name == config.name:
            return entry.load()(config, kv_width, layer=layer, seed=seed)
    raise UsageError(f"'{config.name}' is no codec; known are {', '.join(codec_names())}")
