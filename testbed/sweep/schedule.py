"""The cells of a sweep that are missing, timed here or on other hosts; reasons of what failed."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path

from testbed.child import Child, Message
from testbed.formats import counted
from testbed.records import LearnedCell, read_record
from testbed.rundir.directory import write_failed
from testbed.rundir.progress import Reporter, minutes
from testbed.sweep.cells import Timed
from testbed.sweep.hosts import Hosts
from testbed.sweep.plan import SweepPlan, by, estimate, nodes_of, point_of, seconds
from testbed.sweep.worker import Trained, as_order

__all__ = ["time_missing"]

_ATTEMPTS = 2


def time_missing(plan: SweepPlan, report: Reporter, hosts: Hosts | None, unlearned: dict[str, str]) -> dict[str, str]:
    """Time what is missing, one set of nodes after the other; reasons by cell of what failed."""
    failed = {
        cell.hash: f"its trainer was not learned with seed {each.seed}: {unlearned[each.hash]}"
        for cell in (*plan.cells, *plan.checks)
        for each in cell.learned
        if each.hash in unlearned
    }
    reasons: dict[str, str] = {}
    for attempt in range(_ATTEMPTS):
        missing = {name: cell for name, cell in plan.timed.items() if not plan.is_timed(name) and name not in failed}
        if attempt and not missing:
            break
        if attempt:
            report(f"{counted(len(missing), 'cell')} failed or invalid: retrying once")
        timing = _Timing(plan, report, missing)
        timing.announce()
        timing.run_all(hosts)
        reasons = timing.failed
    return failed | reasons


class _Timing:
    """Cells under way and done, and how long the rest will take."""

    def __init__(self, plan: SweepPlan, report: Reporter, missing: dict[str, Timed]) -> None:
        self.plan, self.report, self.missing = plan, report, missing
        self.failed: dict[str, str] = {}
        self.total, self.done = len(plan.timed), len(plan.timed) - len(missing)
        self.started = time.monotonic()
        self.expected = estimate(list(missing.values()))
        self.closed_form = sum(map(seconds, missing.values()))
        self.behind = 0.0

    def announce(self) -> None:
        """How many there are, and about how long they take."""
        there = f"{counted(self.total, 'cell')}: {self.done} there, {len(self.missing)} to time"
        self.report(f"{there}, about {minutes(self.expected)}" if self.missing else f"{there}")

    def run_all(self, hosts: Hosts | None) -> None:
        """Here, one set of nodes after the other, or on other hosts."""
        if hosts is not None:
            self.run_on(hosts)
            return
        for left in by(list(self.missing.values()), nodes_of).values():
            while left:
                left = self.run(left)

    def run_on(self, hosts: Hosts) -> None:
        """Time everything that is missing, one order per point."""
        points = [
            each for group in by(self.missing.values(), nodes_of).values() for each in by(group, point_of).values()
        ]
        while points:
            orders, again = [self._order(cells, folder="") for cells in points], []
            for order, messages in hosts.serve("testbed.sweep.worker", orders, self.plan.folder):
                ordered = {name: self.missing[name] for group in order["groups"] for name in group["arms"]}
                left, why = dict(ordered), "its process ended early"
                for message in messages:
                    if message.get("failed", "") is None:  # nobody said which
                        why = message["why"]
                    else:
                        self._heard(message, left, self.plan.folder / "logs")
                if left and len(left) < len(ordered):  # the others are to blame for nothing
                    again.append(list(left.values()))
                elif left:
                    self._drop(list(left.values()), why, self.plan.folder / "logs")
            points = again

    def run(self, cells: list[Timed]) -> list[Timed]:
        """One process for cells of the same nodes; those that are left if it fails, without the ones to blame."""
        plan, left = self.plan, {cell.hash: cell for cell in cells}
        for cell in cells:
            shutil.rmtree(plan.folder / "cells" / cell.hash, ignore_errors=True)  # of an attempt that did not end
        log = plan.folder / "logs" / "timing.log"
        child = Child("testbed.sweep.worker", log)
        try:
            for message in child.answers(self._order(cells, folder=str(plan.folder))):
                self._heard(message, left, log)
        finally:
            child.kill()
        status = child.status()
        if len(left) == len(cells):  # nothing was done, and nobody said why
            self._drop([left.pop(cells[0].hash)], f"its process ended with status {status}", log)
        return list(left.values())

    def _heard(self, message: Message, left: dict[str, Timed], log: Path) -> None:
        if "say" in message:
            self.report(message["say"], **message.get("facts", {}))
        elif "done" in message:
            self._count(left.pop(message["done"]), message)
        elif "failed" in message:
            self._drop([left.pop(name) for name in message["failed"] if name in left], message["why"], log)

    def _order(self, cells: list[Timed], *, folder: str) -> Message:
        learned = {}
        for cell in cells:
            known = read_record(LearnedCell, self.plan.learned_file(cell.learned[0]))
            trained = Trained(
                nodes=cell.whole.nodes,
                losses=known.losses,
                rank_losses=known.rank_losses,
                validations=known.validations,
            )
            learned[cell.hash] = asdict(trained)
        return {
            "folder": folder,
            "command": cells[0].settings.command,
            "groups": [as_order(together) for together in by(cells, point_of).values()],
            "learned": learned,
        }

    def _drop(self, cells: list[Timed], why: str, log: Path) -> None:
        if not cells:
            return
        for cell in cells:
            folder = self.plan.folder / "cells" / cell.hash
            folder.mkdir(parents=True, exist_ok=True)
            write_failed(folder, why)
            self.failed[cell.hash] = why
        cells_lost = "; ".join(cell.words for cell in cells)
        self.report(f"FAILED: {cells_lost}: {why.splitlines()[0]}; see {log}")

    def _count(self, cell: Timed, message: Message) -> None:
        self.done += 1
        self.behind += seconds(cell) * self.expected / self.closed_form
        passed = time.monotonic() - self.started
        left = passed * (self.expected - self.behind) / self.behind if self.behind else 0.0
        note = f", INVALID: {message['invalid']}" if message["invalid"] else ""
        self.report(
            f"{cell.words}: {message['step_seconds']:.2f} s a step{note} "
            f"({self.done}/{self.total} cells{f', about {minutes(left)} left' if left > 1 else ''})",
            left_seconds=left,
        )
