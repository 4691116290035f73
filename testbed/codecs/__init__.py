"""What travels instead of K and V. One file per codec, one interface (`testbed.codecs.base.Codec`)."""

import difflib
from importlib.metadata import entry_points

from testbed.codecs.base import Codec, Codecs, Direction, Shape, Wire, whole
from testbed.codecs.best import Best
from testbed.codecs.exact import Exact
from testbed.codecs.latent import Latent
from testbed.codecs.pca import PCA
from testbed.codecs.quantised import Quantised
from testbed.codecs.random_projection import RandomProjection
from testbed.codecs.recent import Recent
from testbed.codecs.subspace import Subspace
from testbed.codecs.topk import TopK
from testbed.config import CodecConfig
from testbed.errors import UsageError

__all__ = ["Codec", "Codecs", "Direction", "Shape", "Wire", "codec_names", "make_codec", "whole"]

_OURS: dict[str, type[Codec]] = {
    "best": Best,
    "exact": Exact,
    "int4": Quantised,
    "int8": Quantised,
    "latent": Latent,
    "pca": PCA,
    "random": RandomProjection,
    "recent": Recent,
    "subspace": Subspace,
    "topk": TopK,
}
_OPTIONS = ("ranks", "hadamard", "fraction", "subspace")


def codec_names() -> list[str]:
    """Every codec that can be named: ours, and those that installed packages add."""
    return sorted({*_OURS, *(entry.name for entry in entry_points(group="testbed.codecs"))})


def make_codec(
    config: CodecConfig, kv_width: int, *, layer: int, seed: int, kv_heads: int | None = None, final: bool = False
) -> Codec:
    """The codec of one layer, `final` being the model's last; every node makes the same one."""
    kind = _find(config)
    if final and config.final_layer == "exact":
        kind, config = Exact, _at_full_width(config)
    return kind(config, kv_width, layer=layer, seed=seed, kv_heads=kv_heads)


def _find(config: CodecConfig) -> type[Codec]:
    """The class that `config` names; raises `UsageError` where there is none, or it has no use for an option."""
    kind = _OURS.get(config.kind)
    if kind is not None:
        _check_options(config, kind)
        return kind
    for entry in entry_points(group="testbed.codecs"):
        if entry.name == config.kind:
            return entry.load()
    known = codec_names()
    close = difflib.get_close_matches(config.kind, known, n=2)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise UsageError(f"'{config.kind}' is no codec; known are {', '.join(known)}{hint}")


def _check_options(config: CodecConfig, kind: type[Codec]) -> None:
    default = CodecConfig()
    for option in _OPTIONS:
        given = getattr(config, option)
        if option not in kind.options and given != getattr(default, option):
            users = ", ".join(sorted(name for name, ours in _OURS.items() if option in ours.options))
            what = f"{option} = {given}" if option != "subspace" else "the table 'subspace'"
            raise UsageError(f"the codec '{config.kind}' has no use for {what}, which is of {users}")


def _at_full_width(config: CodecConfig) -> CodecConfig:
    """For a final layer that stays exact: floating point both ways."""
    floats = ("fp64", "fp32", "bf16")
    wire = config.wire if config.wire in floats else "bf16"
    back = config.wire_backward if config.wire_backward in floats else None
    return CodecConfig(wire=wire, wire_backward=back)
