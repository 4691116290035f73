"""What a sweep is made of: trainers to be learned, once for all links, and cells to be timed, one arm on one link.

Each is known by the hash of what decides its result. What has been done under a hash is never done again; a changed
configuration is another cell; a renamed arm is the same.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from testbed.config import Arm, Preset, parse
from testbed.errors import UsageError
from testbed.runs.experiment import Cell, arms_of, merged
from testbed.runs.settings import Request, Settings, preset_of, settle, target_of
from testbed.sweep.grid import Point, Sweep, described, points_of
from testbed.targets import Target

__all__ = ["TIMED_VERSION", "Timed", "cells_of"]

TIMED_VERSION = 1
"""Part of every hash of a timed cell. Counted up by hand when code changes so that all have to be timed again."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One arm on one network."""

    point: Point
    """What was varied, and with it the settings of every point."""
    varied: Point
    """What was varied alone."""
    arm: Arm
    settings: Settings
    """Of all arms of this point that share the preset."""
    learners: int
    """Nodes that learn; `settings` has those that are timed."""
    seeds: tuple[int, ...]

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides how long it takes; of the cluster's link nothing of the links under test."""
        settings = self.settings
        network = asdict(settings.network)
        if self.arm.link == "fast":
            network = {**network, "links": None}
        config = {
            "version": TIMED_VERSION,
            "network": network,
            "backend": settings.backend,
            "preset": asdict(settings.preset),
            "target": settings.target and asdict(settings.target),
            "seconds_per_arm": settings.seconds_per_arm,
            "arm": {key: value for key, value in asdict(self.arm).items() if key != "name"},
            "seed": settings.seed,
        }
        return json.loads(json.dumps(config))

    @property
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
                nodes=self.learners,
            )
            for seed in self.seeds
        ]


def cells_of(sweep: Sweep, folder: Path, command: str) -> list[Timed]:
    """Every arm at every point, in the order of the file; raises `UsageError` that names what is wrong."""
    cells = []
    keys = [key for axis in sweep.axes() for key in axis]
    for point in points_of(sweep)[0]:
        varied = {key: point[key] for key in keys}
        for settings, learners in _settings(sweep, point, folder, command):
            about = {"point": point, "varied": varied, "settings": settings, "learners": learners}
            cells += [Timed(arm=arm, seeds=sweep.seeds, **about) for arm in settings.arms]
    for name in (sweep.exact, sweep.control):
        if name not in {cell.arm.name for cell in cells}:
            raise UsageError(f"'{name}' is none of the arms: name the arm that exchanges everything and the control")
    return cells


def _settings(sweep: Sweep, point: Point, folder: Path, command: str) -> list[tuple[Settings, int]]:
    """Of a point, arms that share a preset together: on the nodes that are timed, and how many learn."""
    asked = parse(Request, {key: value for key, value in point.items() if "." not in key}, "a point of the grid")
    preset = parse(Preset, merged(asdict(preset_of(asked)), _changes(point, "preset")), "preset")
    target = target_of(asked)
    assert target is not None
    target = parse(Target, merged(asdict(target), _changes(point, "target")), "target")
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
            found.append((replace(timed, thrifty=True, seed=sweep.seeds[0]), whole.nodes))
        return found
    except UsageError as error:
        raise UsageError(f"at {described(point)}: {error}") from None


def _changes(point: Point, kind: str) -> dict[str, Any]:
    """Dotted keys below `kind` as nested tables."""
    found: dict[str, Any] = {}
    for key, value in point.items():
        first, *path = key.split(".")
        if first == kind and path:
            place = found
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = value
    return found
