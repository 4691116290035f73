"""One typed tree for a run. TOML comes in, JSON goes out; nothing here imports torch.

A `Preset` says what is trained (model, data, optimiser, steps); a `CodecConfig` what travels instead of
K and V; an `Arm` which exchange, codec and synchronisation a trainer uses and on which link. Targets,
that is the nodes that are emulated, live in `testbed.pace`.
"""

import difflib
import json
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from testbed.errors import UsageError

__all__ = [
    "STANDARD_ARMS",
    "Arm",
    "CodecConfig",
    "Model",
    "Preset",
    "at_least",
    "load_toml",
    "names_in",
    "parse",
    "to_json",
]

SCHEMA_VERSION = 1
EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"

_STRICT = ConfigDict(extra="forbid")

T = TypeVar("T")


def at_least(least: float, **values: float) -> None:
    """Raise `UsageError` unless every value is a finite number of at least `least`."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise UsageError(f"{name} = {value}: it must be at least {least:g}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shape of a Llama-3 style decoder."""

    __pydantic_config__ = _STRICT

    vocabulary: int
    """Number of token ids."""
    width: int
    """d, the width of the residual stream."""
    layers: int
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    ffn: int
    """Inner width of the SwiGLU."""
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        at_least(1, vocabulary=self.vocabulary, width=self.width, layers=self.layers, heads=self.heads)
        at_least(1, kv_heads=self.kv_heads, ffn=self.ffn, rope_base=self.rope_base)
        if self.width % self.heads or self.heads % self.kv_heads or (self.width // self.heads) % 2:
            raise UsageError(
                f"a width of {self.width} with {self.heads} heads and {self.kv_heads} K/V heads does not divide: "
                "heads must divide the width into an even number, and K/V heads must divide the heads"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """d_kv, the width of K (or V) over all its heads."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is trained, the same in every arm of a comparison."""

    __pydantic_config__ = _STRICT

    model: Model
    context: int
    """Tokens in a sequence."""
    batch: int
    """Sequences in a step, over all nodes together."""
    warm_steps: int
    """Uncompressed steps on short contexts that every arm starts from."""
    steps: int
    """Context-parallel steps after the warm start."""
    sync_every: int
    """c, the steps between two averagings of the weights."""
    subspace_ranks: tuple[int, int]
    """r_K, r_V of the `subspace` codec."""
    latent_rank: int
    """r of the `latent` codec."""
    task_chunks: int = 4
    """Chunks of the recall task, whatever the number of nodes."""
    learning_rate: float = 3e-3
    learning_rate_warmup: int = 50
    learning_rate_floor: float = 0.1
    """Where the linear decay ends, as a fraction."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    validation_sequences: int = 96
    validation_every: int = 50
    """Steps between two validations; a multiple of `sync_every`, for weights differ in between."""

    def __post_init__(self) -> None:
        at_least(1, context=self.context, batch=self.batch, warm_steps=self.warm_steps, steps=self.steps)
        at_least(1, sync_every=self.sync_every, task_chunks=self.task_chunks, latent_rank=self.latent_rank)
        at_least(1, learning_rate_warmup=self.learning_rate_warmup, validation_every=self.validation_every)
        at_least(8, validation_sequences=self.validation_sequences)
        at_least(0, learning_rate=self.learning_rate, learning_rate_floor=self.learning_rate_floor)
        at_least(0, weight_decay=self.weight_decay, clip=self.clip)
        at_least(1, **dict(zip(("subspace_ranks (K)", "subspace_ranks (V)"), self.subspace_ranks, strict=True)))
        if self.context % self.task_chunks:
            raise UsageError(f"context = {self.context} must be a multiple of task_chunks = {self.task_chunks}")
        if self.validation_every % self.sync_every:
            raise UsageError(
                f"validation_every = {self.validation_every} must be a multiple of sync_every = {self.sync_every}: "
                "the nodes hold the same weights only there"
            )


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """What travels instead of K and V."""

    __pydantic_config__ = _STRICT

    name: str = "exact"
    """exact, subspace, latent, or a codec of your own (docs/codec.md)."""
    ranks: tuple[int, ...] = ()
    """subspace: (r_K, r_V); latent: (r,)."""
    wire: Literal["fp32", "bf16", "int8", "int4"] = "bf16"
    """How numbers are written on the wire, K,V and their gradients alike."""
    own_chunk: Literal["projected", "exact"] = "projected"
    """subspace: whether a node uses its own chunk as the others see it."""
    group: int = 32
    """int8, int4: how many neighbouring numbers share a scale."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One trainer in a comparison."""

    __pydantic_config__ = _STRICT

    name: str
    exchange: Literal["all-gather", "local"]
    codec: CodecConfig = field(default_factory=CodecConfig)
    sync: Literal["gradients", "average"]
    """All-reduce the gradients every step, or average the weights every `sync_every` steps."""
    link: Literal["fast", "bw"]
    """`fast` is the cluster's link (100gbit), `bw` the link under test."""


STANDARD_ARMS = ("centralised", "decentralised", "subspace", "latent", "control")


def parse(kind: type[T], data: dict[str, Any], origin: str) -> T:
    """`data` as a `kind`; raises `UsageError` that names the first wrong key and, if unknown, the nearest known one."""
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":
            raise UsageError(f"{origin}: {where + ': ' if where else ''}{first['ctx']['error']}") from None
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise UsageError(f"{origin}: unknown key '{where}'{_nearest(kind, first['loc'])}") from None
        raise UsageError(f"{origin}: {where}: {first['msg']} (given: {first['input']!r})") from None


def _nearest(kind: type, loc: tuple[int | str, ...]) -> str:
    fields: dict[str, Any] = getattr(kind, "__dataclass_fields__", {})
    for part in loc[:-1]:
        found = fields.get(str(part))
        fields = getattr(found.type, "__dataclass_fields__", {}) if found is not None else {}
    close = difflib.get_close_matches(str(loc[-1]), list(fields), n=1, cutoff=0)
    return f"; did you mean '{close[0]}'?" if close else ""


def names_in(folder: str) -> list[str]:
    """Names of the TOML files in `experiments/<folder>`."""
    return sorted(path.stem for path in (EXPERIMENTS / folder).glob("*.toml"))


def load_toml(kind: type[T], folder: str, name: str) -> T:
    """The `kind` called `name` in `experiments/<folder>`, or the one in the TOML file `name`."""
    path = Path(name) if name.endswith(".toml") else EXPERIMENTS / folder / f"{name}.toml"
    if not path.is_file():
        known = names_in(folder)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UsageError(
            f"'{name}' is no {folder[:-1]}; known are {', '.join(known)}, or the path of a .toml file{hint}"
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return parse(kind, data, str(path.name))


def to_json(value: Any) -> str:
    """A configuration as JSON, with its schema version."""
    data = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return json.dumps({"schema_version": SCHEMA_VERSION, **data}, indent=2)
