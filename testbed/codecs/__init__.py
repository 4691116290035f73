"""What travels instead of K and V. One file per codec, one interface (`testbed.codecs.base.Codec`)."""

import difflib
from dataclasses import replace

from testbed.codecs.base import Codec, Codecs, Direction, Scale, Shape, Wire, whole
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
from testbed.config.plugged import plugged, plugged_names
from testbed.errors import UsageError

__all__ = [
    "Codec",
    "Codecs",
    "Direction",
    "Scale",
    "Shape",
    "Wire",
    "at_scale",
    "at_target",
    "codec_names",
    "make_codec",
    "whole",
]

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
    return sorted({*_OURS, *plugged_names("codecs")})


def make_codec(
    config: CodecConfig, kv_width: int, *, layer: int, seed: int, kv_heads: int | None = None, final: bool = False
) -> Codec:
    """The codec of one layer, `final` being the model's last; every node makes the same one."""
    kind = _find(config)
    if final and config.final_layer == "exact":
        kind, config = Exact, _at_full_width(config)
    return kind(config, kv_width, layer=layer, seed=seed, kv_heads=kv_heads)


def at_scale(config: CodecConfig, scale: Scale) -> CodecConfig:
    """`config` with the ranks that its codec has in a model of this scale, unless it has ranks of its own."""
    return config if config.ranks else replace(config, ranks=_find(config).ranks_for(scale) or ())


def at_target(config: CodecConfig, preset: Scale, target: Scale) -> CodecConfig:
    """`config` of a preset's small model as a node of `target` would run it.

    Ranks given for the small model keep their ratio to what the codec has there by default. Raises `UsageError` for
    a codec that cannot say what it sends at the target's width.
    """
    kind = _find(config)
    here, there = kind.ranks_for(preset), kind.ranks_for(target)
    if there is None or (config.ranks and not (here and len(here) == len(config.ranks) == len(there))):
        raise UsageError(
            f"the codec '{config.name}' does not say what its ranks are at a target, so a paced run cannot know what "
            f"it sends there: give {kind.__name__} a ranks_for (docs/codec.md), or add PACE=none"
        )
    if config.ranks and here:
        there = tuple(
            max(1, round(given * far / near)) for given, near, far in zip(config.ranks, here, there, strict=True)
        )
    joint = replace(config.subspace, heads="joint")  # per head it is the same bytes, and a target's heads are not known
    return replace(config, ranks=there, subspace=joint)


def _find(config: CodecConfig) -> type[Codec]:
    """The class that `config` names; raises `UsageError` where there is none, or it has no use for an option."""
    kind = _OURS.get(config.kind)
    if kind is not None:
        _check_options(config, kind)
        return kind
    if (entry := plugged("codecs", config.kind)) is not None:
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
