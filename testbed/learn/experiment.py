"""A question about quality as data: which presets, arms and seeds are learned and held against each other.

    title = "What codecs keep"
    presets = ["recall16", "mqar"]           # names in experiments/presets, or .toml files
    seeds = [10, 11, 12]
    arms = [
        "decentralised", "control", "best",
        { name = "fixed basis", like = "subspace", codec = { subspace = { rotation = "none" } } },
        { name = "short warm start", like = "subspace", preset = { warm_steps = 10, steps = 240 } },
    ]
    nodes = 4
    sync = "gradients"                       # of every arm that does not say otherwise itself
    exact = "decentralised"                  # what recovered fractions are measured against,
    control = "control"                      # and from

A cell is one arm of one preset with one seed; its results are kept under the hash of its
configuration and of what decides them besides: code, data and versions, by content (`testbed.rundir.identity`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import JsonValue

from testbed.config import STRICT, Arm, Preset, at_least, load_toml, parse
from testbed.config.arms import arm_named
from testbed.config.tree import merged, plain_json, read_toml
from testbed.errors import UsageError
from testbed.rundir.identity import Content, learning_content, unnamed

__all__ = ["CELL_VERSION", "Cell", "Experiment", "arms_of", "cells_of", "chosen", "load_experiment"]

CELL_VERSION = 2
"""Part of every hash. Counted up by hand when code changes so that every cell has to be learned again."""


class Judgement(TypedDict):
    """What arms are held against."""

    title: str
    exact: str
    control: str
    nulls: tuple[str, ...]
    margin: float


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What stands in the file."""

    __pydantic_config__ = STRICT

    title: str
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: tuple[Any, ...]
    """Names, or tables: a name, what it is `like`, what is changed of that arm, and of the `preset` for it alone."""
    nodes: int = 4
    sync: Literal["gradients", "average"] | None = None
    """Of every arm that does not say otherwise itself; None: as the arms have it."""
    exact: str = "decentralised"
    """The arm that exchanges everything."""
    control: str = "control"
    """The arm that exchanges nothing."""
    nulls: tuple[str, ...] = ()
    """Arms that send nothing worth the name of K and V: what is recovered beyond the best of them."""
    margin: float = 0.01
    """Nats above exact, at the upper end of the interval, up to which an arm may be called at parity. Set before."""

    def __post_init__(self) -> None:
        at_least(2, nodes=self.nodes)
        at_least(0, margin=self.margin)
        for name in ("presets", "seeds", "arms"):
            if not getattr(self, name):
                raise UsageError(f"{name} is empty: name at least one")
        for name, given in (("presets", [Path(preset).stem for preset in self.presets]), ("seeds", self.seeds)):
            if len(set(given)) < len(given):
                raise UsageError(f"{name} = {list(given)}: one of them stands there twice")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise UsageError(f"seeds = {list(self.seeds)}: they are whole numbers from 0 to {2**32 - 1}")

    @property
    def judgement(self) -> Judgement:
        """What its arms are held against, as `testbed.analysis.quality.judge.judge` takes it."""
        return {
            "title": self.title,
            "exact": self.exact,
            "control": self.control,
            "nulls": self.nulls,
            "margin": self.margin,
        }


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm of one preset with one seed."""

    preset_name: str
    preset: Preset
    """With what the arm changes of it."""
    arm: Arm
    seed: int
    nodes: int

    @property
    def asked(self) -> dict[str, JsonValue]:
        """Everything that is set and decides what is learned: not names, not the link."""
        arm = {key: value for key, value in asdict(self.arm).items() if key not in ("name", "link")}
        config = {"preset": asdict(self.preset), "arm": arm, "seed": self.seed, "nodes": self.nodes}
        return json.loads(json.dumps(config))

    @property
    def content(self) -> Content:
        """Everything that decides it besides: code, data, versions."""
        return learning_content(self.preset.data, self.arm)

    @property
    def config(self) -> dict[str, JsonValue]:
        """Both: the data by content, whatever it is called."""
        return {"version": CELL_VERSION, **unnamed(self.asked), "content": plain_json(self.content)}

    @cached_property
    def hash(self) -> str:
        """Of the configuration; the name of the file with its results."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def group(self) -> str:
        """Cells of the same group start from the same warm start."""
        return json.dumps([self.asked["preset"], self.seed, self.nodes], sort_keys=True)


def load_experiment(file: str) -> Experiment:
    """The experiment in a .toml file; raises `UsageError` with one sentence."""
    path = Path(file)
    experiment = read_toml(Experiment, path)
    for preset_name in experiment.presets:
        arms = arms_of(experiment.arms, load_toml(Preset, "presets", preset_name), path.name, sync=experiment.sync)
        names = [arm.name for arm, _ in arms]
        for null in experiment.nulls:
            if null not in names:
                raise UsageError(f"{path.name}: nulls: '{null}' is none of the arms, which are {', '.join(names)}")
    return experiment


def cells_of(experiment: Experiment) -> list[Cell]:
    """Seed by seed, so that whatever is done when time is up is done of every arm and preset."""
    cells = []
    for seed in experiment.seeds:
        for name in experiment.presets:
            whole = load_toml(Preset, "presets", name)
            for arm, preset in arms_of(experiment.arms, whole, name, sync=experiment.sync):
                cells.append(
                    Cell(preset_name=Path(name).stem, preset=preset, arm=arm, seed=seed, nodes=experiment.nodes)
                )
    return cells


def chosen(
    experiment: Experiment, *, presets: str | None = None, arms: str | None = None, seeds: str | None = None
) -> Experiment:
    """With only some of its presets, arms or seeds, given with commas between them."""
    if presets is not None:
        experiment = replace(experiment, presets=tuple(_some("preset", presets, experiment.presets)))
    if arms is not None:
        names = [arm if isinstance(arm, str) else arm["name"] for arm in experiment.arms]
        wanted = _some("arm", arms, names)
        experiment = replace(
            experiment, arms=tuple(arm for arm, name in zip(experiment.arms, names, strict=True) if name in wanted)
        )
    if seeds is not None:
        wanted = _some("seed", seeds, [str(seed) for seed in experiment.seeds], known=False)
        experiment = replace(experiment, seeds=tuple(int(seed) for seed in wanted))
    return experiment


def _some(kind: str, given: str, there: Iterable[str], *, known: bool = True) -> list[str]:
    wanted = list(dict.fromkeys(part.strip() for part in given.split(",")))
    for each in wanted:
        if known and each not in there:
            raise UsageError(f"'{each}' is no {kind} of this experiment, which has {', '.join(there)}")
        if not known and not each.isdigit():
            raise UsageError(f"'{each}' is no {kind}: type whole numbers with commas between them, such as 10,11")
    return wanted


def arms_of(
    entries: Iterable[Any],
    preset: Preset,
    origin: str,
    *,
    sync: str | None = None,
    changes: Mapping[str, JsonValue] | None = None,
) -> list[tuple[Arm, Preset]]:
    """Every arm and what it is trained on, in the order of the file.

    `sync`: of every arm that does not say otherwise itself; `changes`: of every arm, whatever it says.
    """
    arms = [_arm(entry, preset, f"{origin}: arms[{place}]", sync, changes or {}) for place, entry in enumerate(entries)]
    names = [arm.name for arm, _ in arms]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{origin}: two arms are called '{name}'")
    return arms


def _arm(
    entry: Any, preset: Preset, origin: str, sync: str | None, always: Mapping[str, JsonValue]
) -> tuple[Arm, Preset]:
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UsageError(f"{origin}: an arm is a name, or a table with a name (given: {entry!r})")
    changes = dict(entry)
    name, like, of_preset = changes.pop("name"), changes.pop("like", None), changes.pop("preset", {})
    try:
        if like is None and {"codec", "exchange"} & changes.keys():
            like = "decentralised"
        preset = parse(Preset, merged(asdict(preset), of_preset), f"{origin}: preset")
        base = asdict(arm_named(name if like is None else like))
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") if origin not in str(error) else error from None
    if sync is not None:
        changes.setdefault("sync", sync)
    if isinstance(changes.get("codec"), dict) and "name" in changes["codec"]:
        base["codec"] = {}  # another codec than that of what it is like
    return parse(Arm, merged(merged(base, changes), always) | {"name": name}, origin), preset
