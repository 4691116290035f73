"""A sweep, resolved: what has to be learned and timed here, what belongs together, and about how long it takes."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from testbed.config.tree import merged
from testbed.learn.experiment import Cell
from testbed.records import CellSummary, read_record
from testbed.rundir.older import Older, find_older
from testbed.sweep.cells import LINKS, Timed
from testbed.sweep.grid import Excluded, Grid

__all__ = ["SweepPlan", "by", "estimate", "learning_seconds", "nodes_of", "point_of", "seconds"]

T = TypeVar("T")
_SECONDS_PER_STEP = 0.07
_START_SECONDS = 40.0
"""Seconds that a set of nodes takes to start: processes, data, warm start. For the estimate only."""
_PROOF_SECONDS = 12.0
"""Seconds that the proof of a point's links takes. For the estimate only."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep, resolved."""

    sweep: Grid
    cells: list[Timed]
    excluded: list[Excluded]
    folder: Path
    checks: list[Timed] = field(default_factory=list)
    """Cells that are trained step by step as well."""
    shard: tuple[int, int] = (0, 1)
    """Which part of how many is done here."""
    keep_older: bool = False
    """Whether a cell of the same settings that other code, data or versions have made will do."""

    @cached_property
    def older(self) -> dict[str, Older]:
        """By hash of what is missing: what is there of the same settings, in another state."""
        trainers = {each.hash: each for cell in (*self.cells, *self.checks) for each in cell.learned}
        learned = {key: (self._learned(key), each.asked, each.content) for key, each in trainers.items()}
        cells = {each.hash: each for each in (*self.cells, *self.checks)}
        timed = {key: (self._summary(key), each.asked, each.content) for key, each in cells.items()}
        found = find_older(learned, (self.folder / "learned").glob("*.json"))
        return found | find_older(timed, (self.folder / "cells").glob("*/summary.json"))

    def used(self, wanted: str) -> str:
        """The hash of the cell, or the trainer, that stands for this one."""
        return self.older[wanted].hash if self.keep_older and wanted in self.older else wanted

    def why_older(self, wanted: str) -> str:
        """In what the one that stands for it differs; empty if it is the one that was wanted."""
        return self.older[wanted].why if self.keep_older and wanted in self.older else ""

    @property
    def trainers(self) -> dict[str, Cell]:
        """What has to be learned here, by hash: what is timed here needs its first seed's, others are shared out."""
        found = {cell.learned[0].hash: cell.learned[0] for cell in self.timed.values()}
        others = {each.hash: each for cell in self.cells for each in cell.learned[1:]}
        return found | self._own(others)

    @cached_property
    def timed(self) -> dict[str, Timed]:
        """What has to be timed here, by hash, checks last; the cluster's link is the same at every point."""
        found: dict[str, Timed] = {}
        for point in self._own(by(self.cells, point_of)).values():
            for cell in point:
                found.setdefault(cell.hash, cell)
        return found | self._own({check.hash: check for check in self.checks})

    def _own(self, things: dict[str, T]) -> dict[str, T]:
        which, of = self.shard
        return {key: thing for number, (key, thing) in enumerate(things.items()) if number % of == which}

    def learned_file(self, trainer: Cell) -> Path:
        return self.learned_name(trainer.hash)

    def learned_name(self, trainer: str) -> Path:
        return self._learned(self.used(trainer))

    def _learned(self, trainer: str) -> Path:
        return self.folder / "learned" / f"{trainer}.json"

    def _summary(self, cell: str) -> Path:
        return self.folder / "cells" / cell / "summary.json"

    def is_timed(self, cell: str) -> bool:
        """Whether a cell is done, and valid: one whose measurement broke is timed again."""
        file = self.summary_file(cell)
        return file.is_file() and read_record(CellSummary, file).valid

    def summary_file(self, cell: str) -> Path:
        return self._summary(self.used(cell))


def by(cells: Iterable[Timed], key: Callable[[Timed], str]) -> dict[str, list[Timed]]:
    found: dict[str, list[Timed]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    return found


def nodes_of(cell: Timed) -> str:
    """Cells with the same one can be timed on the same nodes: all but the links is alike."""
    asked = merged(cell.asked, {"network": dict.fromkeys(LINKS)})
    shared = [asked["network"], asked["preset"], asked["seed"], asked["backend"], asked.get("image")]
    return json.dumps(shared, sort_keys=True)


def point_of(cell: Timed) -> str:
    """Cells with the same one are timed together: not what is trained step by step with what is timed, nor, for it is
    the same whatever the links, what is on the cluster's link with any point. What is varied besides links (target,
    budget, image, the arm itself) keeps them apart."""
    shared = cell.point
    if cell.arm.link == "fast":
        shared = {key: value for key, value in cell.asked.items() if key != "arm"}
        shared |= {key: value for key, value in cell.point.items() if key.startswith("arm.")}
    return json.dumps([cell.arm.link == "fast", shared, cell.asked["preset"], cell.settings.live_steps], sort_keys=True)


def learning_seconds(trainers: list[Cell]) -> float:
    """Seconds that learning takes, by experience with the `quick` model on two cores."""
    steps = sum(each.preset.warm_steps + each.preset.steps for each in trainers)
    return _START_SECONDS / 4 + steps * _SECONDS_PER_STEP if trainers else 0.0


def estimate(cells: list[Timed]) -> float:
    """Seconds that timing takes: the proof of links by experience, steps by closed form."""
    points, nodes = len(by(cells, point_of)), len(by(cells, nodes_of))
    return sum(map(seconds, cells)) + points * _PROOF_SECONDS + nodes * _START_SECONDS


def seconds(cell: Timed) -> float:
    """Seconds that one cell's timed steps and averagings take."""
    from testbed.driver.budget import timed_seconds  # and with it torch

    return timed_seconds(cell.settings, cell.arm)
