"""Arms that have a name: the five of a comparison, and others that can be put beside them."""

import difflib
import re

from testbed.config.arm import STANDARD_ARMS, Arm, IdsConfig
from testbed.config.codec import CodecConfig
from testbed.config.plugged import plugged_names
from testbed.config.tree import load_toml, names_in
from testbed.errors import UsageError

__all__ = ["arm_named", "arm_names", "standard_arms"]

_EXCHANGES = ("mask-aware", "ring", "ulysses")
_IDS = ("ids", "ids-4", "ids-16", "ids-chunk")
_CODECS = ("best", "int8", "int4", "topk", "pca", "recent", "random")


def standard_arms() -> tuple[Arm, ...]:
    """The five trainers of a comparison; the last four share link, sync interval, seed, data and warm start."""
    return tuple(arm_named(name) for name in STANDARD_ARMS)


def arm_names() -> list[str]:
    """Every arm that can be named without a configuration of its own; installed exchanges and codecs come last."""
    plugged = [*plugged_names("exchanges"), *plugged_names("codecs")]
    return [*STANDARD_ARMS, "no-cp", *_EXCHANGES, *_IDS, *_CODECS, *names_in("arms"), *plugged]


def arm_named(name: str) -> Arm:
    """The arm called `name`; a codec may be followed by a wire, as in random+int8.

    `ids` sends token ids, of which receivers make the first layer's K and V; `ids-W` makes those of every layer,
    attending to W tokens before each (`ids-chunk`: to all of its chunk).

    Also the one in experiments/arms, or in the .toml file `name`. Ranks that are left out are the preset's
    (`testbed.codecs.at_scale`).
    """
    if name == "centralised":
        return Arm(name=name, exchange="all-gather", sync="gradients", link="fast")
    if name == "decentralised":
        return Arm(name=name, exchange="all-gather", sync="average", link="bw")
    if name == "control":
        return Arm(name=name, exchange="local", sync="average", link="bw")
    if name == "no-cp":
        return Arm(name=name, exchange="local", split="batch", sync="average", link="bw")
    if found := re.fullmatch(r"ids(?:-(\d{1,9}|chunk))?", name):
        window = found[1]
        ids = (
            IdsConfig() if window is None else IdsConfig(layers=0, window=window if window == "chunk" else int(window))
        )
        return Arm(name=name, exchange="ids", ids=ids, sync="average", link="bw")
    if name in _EXCHANGES or name in plugged_names("exchanges"):
        return Arm(name=name, exchange=name, sync="average", link="bw")
    if name.endswith(".toml") or name in names_in("arms"):
        return load_toml(Arm, "arms", name)
    codec = name.partition("+")[0]
    if codec not in arm_names() or codec in (*_EXCHANGES, *_IDS, "centralised", "decentralised", "control", "no-cp"):
        close = difflib.get_close_matches(name, arm_names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"'{name}' is no arm and no installed codec; known are {', '.join(arm_names())}{hint}")
    # as many bytes as the paper's codec: the preset's latent rank is one for four bits a number
    wire = "int4" if name in ("latent", "random") else None
    return Arm(
        name=name,
        exchange="all-gather",
        codec=CodecConfig(name=name, wire=wire),
        sync="average",
        link="bw",
    )
