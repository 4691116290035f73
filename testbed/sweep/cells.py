"""What a sweep is made of: trainers to be learned, once for all links, and cells to be timed, one arm on one link.

Each is known by the hash of what decides its result. What has been done under a hash is never done again; a changed
configuration is another cell; a renamed arm is the same.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from testbed.config import Arm, Preset, parse
from testbed.config.tree import merged, plain_json, table_of
from testbed.driver.backends import image_digest
from testbed.errors import UsageError
from testbed.learn.experiment import Cell, arms_of
from testbed.records import described
from testbed.rundir.identity import Content, timing_content, unnamed
from testbed.settings.emulate import Request, Settings, preset_of, settle, target_of
from testbed.sweep.grid import Grid, Point, flat, points_of
from testbed.targets import Target

__all__ = ["LINKS", "TIMED_VERSION", "Timed", "cells_of", "checks_of"]

TIMED_VERSION = 2
"""Part of every hash of a timed cell. Counted up by hand when code changes so that all have to be timed again."""
LINKS = ("link", "node_links", "pair_links")
"""Of a network, what may change between two points on the same nodes."""
_EASY_BPS = 4 * 10**9
"""What even a small machine carries between all its nodes."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One arm on one network: timed, or trained step by step."""

    point: Point
    """What was varied, and with it the settings of every point."""
    varied: Point
    """What was varied alone."""
    arm: Arm
    settings: Settings
    """Of all arms of this point that share the preset, on the nodes that are timed."""
    whole: Settings
    """The same settings, on the nodes that learn."""
    seeds: tuple[int, ...]

    @cached_property
    def asked(self) -> dict[str, JsonValue]:
        """Everything that is set and decides how long it takes; of the cluster's link nothing of those under test."""
        settings = self.settings
        network = asdict(settings.network)
        if self.arm.link == "fast":
            network |= dict.fromkeys(LINKS)
        config = {
            "network": network,
            "backend": settings.backend,
            "preset": asdict(settings.preset),
            "target": settings.target and asdict(settings.target),
            "seconds_per_arm": settings.seconds_per_arm,
            "arm": {key: value for key, value in asdict(self.arm).items() if key != "name"},
            "seed": settings.seed,
        }
        if settings.image is not None:
            config |= {"image": settings.image}
        if settings.live_steps is not None:  # for which there is no budget
            config |= {"live_steps": settings.live_steps, "seconds_per_arm": None}
        return json.loads(json.dumps(config))

    @cached_property
    def content(self) -> Content:
        """Everything that decides it besides: code, data, versions, and of what containers are."""
        image = image_digest(self.settings.image) if self.settings.backend == "docker" else None
        return timing_content(self.settings.preset.data, self.arm, image)

    @cached_property
    def config(self) -> dict[str, JsonValue]:
        """Both: the data by content, whatever it is called."""
        return {"version": TIMED_VERSION, **unnamed(self.asked), "content": plain_json(self.content)}

    @property
    def words(self) -> str:
        """What and where, for messages."""
        steps, seed = self.settings.live_steps, self.settings.seed
        live = "" if steps is None else f", {steps} steps with seed {seed}"
        return f"{self.arm.name} at {described(self.varied)}{live}"

    @cached_property
    def hash(self) -> str:
        """Of the configuration; the name of the folder with its results."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def learned(self) -> list[Cell]:
        """Its trainer, by seed; the first is that whose losses are held against those of the timed nodes."""
        settings = self.settings
        return [
            Cell(
                preset_name=Path(settings.preset_name).stem,
                preset=settings.preset,
                arm=self.arm,
                seed=seed,
                nodes=self.whole.nodes,
            )
            for seed in self.seeds
        ]


def cells_of(sweep: Grid, folder: Path, command: str) -> list[Timed]:
    """Every arm at every point, in the order of the file; raises `UsageError` that names what is wrong."""
    cells = []
    keys = [key for axis in sweep.axes() for key in axis]
    for point in points_of(sweep)[0]:
        varied = {key: point[key] for key in keys}
        for settings, whole in _settings(sweep, point, folder, command):
            about = {"point": point, "varied": varied, "settings": settings, "whole": whole}
            cells += [Timed(arm=arm, seeds=sweep.seeds, **about) for arm in settings.arms]
    for name in (sweep.exact, sweep.control):
        if name not in {cell.arm.name for cell in cells}:
            raise UsageError(f"'{name}' is none of the arms: name the arm that exchanges everything and the control")
    return cells


def checks_of(sweep: Grid, cells: list[Timed], *, full: bool) -> list[Timed]:
    """Cells that are also trained step by step on their links, by as many nodes as learn, to be held against what was
    composed: those that the file names; or one, that of a compressed arm on the link that asks least of this machine;
    or, with `full`, all, with every seed and to the end."""
    if full:
        return [_trained(cell, seed, cell.settings.preset.steps) for cell in cells for seed in cell.seeds]
    if sweep.check:
        return [_trained(*_named(each, cells), _steps(each)) for each in sweep.check]

    def asks(cell: Timed) -> tuple[bool, ...]:
        between = cell.arm.link == "bw" and cell.arm.exchanges
        network, named = cell.whole.network, cell.arm.name in (sweep.exact, sweep.control)
        return not between, named, network.total_bps > _EASY_BPS, network.impaired

    best = min(map(asks, cells))
    chosen = max((cell for cell in cells if asks(cell) == best), key=lambda cell: cell.whole.network.total_bps)
    return [_trained(chosen, chosen.seeds[0], None)]


def _steps(check: Mapping[str, JsonValue]) -> int | None:
    steps = check.get("steps")
    return steps if isinstance(steps, int) else None


def _named(check: Mapping[str, JsonValue], cells: list[Timed]) -> tuple[Timed, int]:
    """The cell that a [[check]] means, and the seed."""
    wanted = {key: value for key, value in flat(check).items() if key not in ("arm", "steps", "seed")}
    for cell in cells:
        if cell.arm.name == check["arm"] and all(cell.varied[key] == value for key, value in wanted.items()):
            seed = check.get("seed")
            return cell, seed if isinstance(seed, int) else cell.seeds[0]
    raise UsageError(f"check: no cell is {described(dict(check))}; testbed sweep --dry-run names them all")


def _trained(cell: Timed, seed: int, steps: int | None) -> Timed:
    """Unless said, one interval between synchronisations, the last of which counts."""
    preset = cell.settings.preset
    steps = min(preset.sync_every, preset.steps) if steps is None else steps
    if steps > preset.steps:
        raise UsageError(f"check: {steps} steps of {cell.arm.name} were asked for, and its preset has {preset.steps}")
    return replace(cell, settings=replace(cell.whole, seed=seed, live_steps=steps), seeds=(seed,))


def _settings(sweep: Grid, point: Point, folder: Path, command: str) -> list[tuple[Settings, Settings]]:
    """Of a point, arms that share a preset together: on the nodes that are timed, and on those that learn."""
    asked = parse(Request, {key: value for key, value in point.items() if "." not in key}, "a point of the grid")
    preset = parse(Preset, merged(table_of(preset_of(asked)), _changes(point, "preset")), "preset")
    target = target_of(asked)
    assert target is not None
    target = parse(Target, merged(table_of(target), _changes(point, "target")), "target")
    together: dict[str, list[Arm]] = {}
    presets: dict[str, Preset] = {}
    for arm, own in arms_of(sweep.arms, preset, "the sweep", changes=_changes(point, "arm")):
        key = json.dumps(asdict(own), sort_keys=True)
        presets[key] = own
        together.setdefault(key, []).append(arm)
    try:
        found = []
        for key, arms in together.items():
            whole = settle(asked, presets[key], target, tuple(arms), folder=folder, command=command)
            timed = whole
            if sweep.timed_nodes is not None:
                if whole.accounting == "nic":
                    raise UsageError("timed_nodes is for accounting pair: a node's access link serves all its peers")
                fewer = replace(asked, nodes=sweep.timed_nodes)
                timed = settle(fewer, presets[key], target, tuple(arms), folder=folder, command=command)
            found.append((replace(timed, thrifty=True, seed=sweep.seeds[0]), whole))
        return found
    except UsageError as error:
        raise UsageError(f"at {described(point)}: {error}") from None


def _changes(point: Point, kind: str) -> dict[str, JsonValue]:
    """Dotted keys below `kind` as nested tables."""
    found: dict[str, JsonValue] = {}
    for key, value in point.items():
        first, *path = key.split(".")
        if first == kind and path:
            for part in reversed(path):
                value = {part: value}
            found = merged(found, value)
    return found
