"""Cells that are missing, learned by processes at a time, each cells that share a warm start.

What a process does is in `testbed.learn.worker`. A cell that fails is dropped with its reason, and the rest of its
group goes on in another process.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from testbed.child import Child, Message
from testbed.formats import counted
from testbed.learn.experiment import Cell
from testbed.rundir.directory import environment
from testbed.rundir.identity import host_content

__all__ = ["Learning", "groups_of", "order_of"]


class Learning:
    """Groups of cells that share a warm start, a process each, so many at a time."""

    def __init__(
        self, folder: Path, logs: Path, missing: list[Cell], total: int, report: Callable[[str], None], live: bool
    ) -> None:
        self.folder, self.logs = folder, logs
        self.report, self.live, self.total = report, live, total
        self.groups: queue.SimpleQueue[list[Cell]] = queue.SimpleQueue()
        groups = groups_of(missing)
        for group in groups:
            self.groups.put(group)
        self.done = total - len(missing)
        self.failed: dict[str, str] = {}
        self.work = sum(_work(group) for group in groups)
        self.worked: dict[int, float] = {}
        """Steps by job, under way or done."""
        self.started = time.monotonic()
        self.lock = threading.Lock()
        self.children: list[Child] = []
        self.over = threading.Event()
        report(
            f"{counted(total, 'cell')}: {self.done} there, {len(missing)} to learn after "
            f"{counted(len(groups), 'warm start')}"
        )

    def run(self, jobs: int) -> dict[str, str]:
        """Learn them all; reasons by hash of those that failed."""
        threads = [threading.Thread(target=self._serve, args=(job,)) for job in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # in slices: Ctrl-C is heard in between
        finally:
            self.over.set()
            for child in self.children:
                child.kill()
        return self.failed

    def _serve(self, job: int) -> None:
        before = 0.0
        while not self.over.is_set():
            try:
                group = self.groups.get_nowait()
            except queue.Empty:
                return
            work = _work(group)
            while group and not self.over.is_set():
                group = self._learn(group, job, before)
            before += work
            self.worked[job] = before

    def _learn(self, group: list[Cell], job: int, before: float) -> list[Cell]:
        """One process for the cells of a group; those that are left if it fails, without the one to blame."""
        log = self.logs / f"{group[0].preset_name}_seed{group[0].seed}.log"
        left = {cell.hash: cell for cell in group}
        blame: str | None = None
        why = ""
        child, behind = Child("testbed.learn.worker", log), before
        self.children.append(child)
        for message in child.answers(order_of(group, self.folder)):
            if "done" in message:
                cell = left.pop(message["done"])
                behind += cell.preset.steps + (behind == before) * cell.preset.warm_steps
                self._count(job, behind, cell, message)
            elif "failed" in message:
                blame, why = message["failed"], message["why"]
            else:
                self._count(job, behind + message.get("warm_steps", 0) + message.get("steps", 0))
        status = child.status()
        self.children.remove(child)
        if not left or self.over.is_set():
            return []
        return self._drop(left, blame, why or f"its process ended with status {status}", log)

    def _drop(self, left: dict[str, Cell], blame: str | None, why: str, log: Path) -> list[Cell]:
        """Note what failed: a cell, or where it was the warm start, all that need it."""
        to_blame = [blame if blame is not None else next(iter(left))] if blame != "" else list(left)
        for cell_hash in to_blame:
            cell = left.pop(cell_hash)
            with self.lock:
                self.failed[cell_hash] = why
                self.report(f"{_called(cell)} FAILED: {why}; see {log}")
        return list(left.values())

    def _count(self, job: int, worked: float, cell: Cell | None = None, message: Message | None = None) -> None:
        with self.lock:
            self.worked[job] = worked
            if cell is not None and message is not None:
                self.done += 1
                recall = message["recall_accuracy_remote"]
                facts = "" if recall is None else f", remote recall {recall:.3f}"
                self.report(
                    f"{_called(cell)}: validation loss {message['val_loss']:.4f}{facts} ({message['seconds']:.0f} s; "
                    f"{self.done}/{self.total} cells{self._left()})"
                )
            elif self.live:
                self.report(f"  learning{self._left()}: step {sum(self.worked.values()):.0f}/{self.work:.0f}")

    def _left(self) -> str:
        worked = sum(self.worked.values())
        if not 0 < worked < self.work:
            return ""
        seconds = (time.monotonic() - self.started) * (self.work - worked) / worked
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _called(cell: Cell) -> str:
    return f"{cell.preset_name}, seed {cell.seed}, {cell.arm.name}"


def _work(group: list[Cell]) -> float:
    """Steps, the warm start's too."""
    return group[0].preset.warm_steps + sum(cell.preset.steps for cell in group)


def groups_of(cells: list[Cell]) -> list[list[Cell]]:
    """Those that share a warm start together."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.group, []).append(cell)
    return list(found.values())


def order_of(group: list[Cell], folder: Path) -> Message:
    place, first = asdict(environment().place), group[0]
    return {
        "preset": asdict(first.preset),
        "seed": first.seed,
        "nodes": first.nodes,
        "folder": str(folder),
        "host": host_content(first.preset.data, (cell.arm for cell in group)),
        "arms": {cell.hash: asdict(cell.arm) for cell in group},
        "about": {
            cell.hash: {
                "cell": cell.hash,
                "config": cell.config,
                "asked": cell.asked,
                "content": cell.content,
                "environment": place,
            }
            for cell in group
        },
    }
