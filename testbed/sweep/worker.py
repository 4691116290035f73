"""Cells of one network after the other, timed on nodes that stay: `python -m testbed.sweep.worker`.

The order comes as a JSON line on standard input, what happens leaves as JSON lines on standard output; when standard
input ends, so does this process. Ranks, data and warm start are made once; between two points only the links change,
and each point's are proven anew. A link that cannot be had fails the cells of its point; anything else ends this
process, too, and whoever ordered the rest goes on in another.
"""

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import JsonValue

from emulation.errors import EmulationError, LinkError
from emulation.kernel.world import run_in_world
from emulation.spec.network import Network
from testbed.child import Message, Reply, answering, ending_with_parent
from testbed.config import STRICT, Arm, Preset, parse
from testbed.config.tree import table_of
from testbed.errors import LossChanged, TestbedError
from testbed.records import CellSummary, LearnedSeries, Validation, received
from testbed.rundir.directory import environment
from testbed.rundir.identity import Content, HostContent, check_host, host_content
from testbed.settings.emulate import Settings
from testbed.sweep.cells import Timed
from testbed.sweep.grid import Point
from testbed.targets import Target

if TYPE_CHECKING:
    from testbed.driver.comparison import ComparisonRun
    from testbed.driver.results import ArmResult, Learned

__all__ = ["Trained", "as_order", "check_learned"]


class About(TypedDict):
    """What decides a cell's time."""

    asked: dict[str, JsonValue]
    content: Content


class Group(TypedDict):
    """Cells of one point, as an order has them."""

    point: Point
    settings: dict[str, JsonValue]
    arms: dict[str, dict[str, JsonValue]]
    """By hash of the cell."""
    about: dict[str, About]
    host: HostContent


def as_order(cells: list[Timed]) -> Group:
    """Cells of one point as part of an order; the inverse is `_settings`."""
    first = cells[0].settings
    network = table_of(first.network)  # whole, whatever decides the first cell's time
    whole = cells[0].asked | {"network": network, "preset_name": first.preset_name}
    return {
        "point": cells[0].point,
        "settings": {key: value for key, value in whole.items() if key != "arm"},
        "arms": {cell.hash: table_of(cell.arm) for cell in cells},
        "about": {cell.hash: {"asked": cell.asked, "content": cell.content} for cell in cells},
        "host": host_content(first.preset.data, (cell.arm for cell in cells)),
    }


def _settings(group: Message, folder: Path, command: str) -> Settings:
    given = group["settings"]
    arms = {cell: parse(Arm, arm, "arm") for cell, arm in group["arms"].items()}
    return Settings(
        folder=folder,
        command=command,
        network=parse(Network, given["network"], "network"),
        schedule=None,
        backend=given["backend"],
        preset_name=given["preset_name"],
        preset=parse(Preset, given["preset"], "preset"),
        target=parse(Target, given["target"], "target"),
        live_seconds=None,
        live_steps=given.get("live_steps"),
        image=given.get("image"),
        arms=tuple(arms.values()),
        seed=given["seed"],
        share=True,
        seconds_per_arm=given["seconds_per_arm"] or 0.0,
        thrifty=True,
        folders={arm.name: folder / "cells" / cell for cell, arm in arms.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What of a learned cell its timed steps are held against (`testbed.records.LearnedCell`), as orders carry it."""

    __pydantic_config__ = STRICT

    nodes: int
    """That learned it."""
    losses: tuple[float, ...]
    rank_losses: list[list[list[float]]]
    validations: tuple[Validation, ...]


class _Session:
    """The nodes, and what has been done on them."""

    def __init__(self, order: Message, reply: Reply) -> None:
        self.order, self.reply = order, reply
        self.folder = Path(order["folder"])
        self.environment = environment()
        self.before: ComparisonRun | None = None
        self.now: ComparisonRun | None = None
        """Of the point before, and of the one under way."""
        self.cells: dict[str, str] = {}
        """Cell of each arm of the present point."""
        self.losses: dict[str, list[list[list[float]]]] = {}
        """Losses of the first steps, by arm."""

    def run(self) -> int:
        """Every group; 0, or 1 if one failed."""
        from testbed.driver.emulate import make_backend

        groups = self.order["groups"]
        blame = list(groups[0]["arms"])
        try:
            with ExitStack() as stack:
                backend = stack.enter_context(make_backend(self._settings(groups[0])))
                for group in groups:
                    blame = list(group["arms"])
                    self._check_host(group)
                    try:
                        self._take(group, backend, stack, blame)
                    except LinkError as error:  # of this point; the nodes are well
                        self.reply({"failed": blame, "why": f"{error}"})
        except (EmulationError, TestbedError) as error:
            self.reply({"failed": self._under_way() or blame, "why": f"{error}"})
            return 1
        return 0

    def _check_host(self, group: Message) -> None:
        arms = self._settings(group).arms
        check_host(group["host"], host_content(self._settings(group).preset.data, arms))

    def _under_way(self) -> list[str]:
        """The cell of the arm that was the last to begin; the others of its point may be well."""
        names = self.now.results if self.now else {}
        return [self.cells[list(names)[-1]]] if names else []

    def _settings(self, group: Message) -> Settings:
        return _settings(group, self.folder, self.order["command"])

    def _take(self, group: Message, backend: Any, stack: ExitStack, blame: list[str]) -> None:
        """One point. `blame` loses every cell that is done."""
        from testbed.driver.comparison import ComparisonRun
        from testbed.driver.ranks import Ranks

        comparison = ComparisonRun(self._settings(group), backend, self._say)
        self.now = comparison
        names = self.cells = {arm["name"]: cell for cell, arm in group["arms"].items()}
        if self.before is None:
            self.reply({"say": comparison.links.explore()})
            comparison.prepare(stack.enter_context(Ranks(backend, self.folder / "logs")))
        else:
            comparison.links.explore(self.before.links)
            comparison.go_on_from(self.before)
        self.before = comparison
        learned = self._all_learned(comparison, blame)
        comparison.take_all(learned, [arm for arm in comparison.settings.arms if names[arm.name] in blame])
        for name, cell in names.items():
            if name not in comparison.results:
                continue
            try:
                summary = self._write(comparison, name, cell, group)
            except LossChanged as error:
                self._fail(cell, error, blame)
                continue
            blame.remove(cell)
            invalid = summary.why[0] if summary.why else None
            self.reply({"done": cell, "step_seconds": summary.step_seconds_mean, "invalid": invalid})

    def _all_learned(self, comparison: "ComparisonRun", blame: list[str]) -> "dict[str, Learned]":
        """Learned losses by arm; empty in live mode. An arm whose first timed steps differ is reported as failed
        and removed from `blame`."""
        learned = {}
        for arm in comparison.settings.arms if comparison.settings.mode == "composed" else ():
            try:
                learned[arm.name] = self._learned(arm, self.cells[arm.name], comparison)
            except LossChanged as error:
                self._fail(self.cells[arm.name], error, blame)
        return learned

    def _fail(self, cell: str, error: Exception, blame: list[str]) -> None:
        """This cell alone."""
        blame.remove(cell)
        self.reply({"failed": [cell], "why": f"{error}"})

    def _say(self, text: str, **facts: Any) -> None:
        self.reply({"say": text, "facts": facts})

    def _learned(self, arm: Arm, cell: str, comparison: "ComparisonRun") -> "Learned":
        """What the arm's timed steps are held against: the same nodes' steps off the link, once for all points."""
        from testbed.driver.results import Learned

        known, key = self._known(cell), json.dumps(asdict(replace(arm, name="")), sort_keys=True)
        if key not in self.losses:
            self.losses[key] = comparison.first_losses(arm)
        if known.nodes == comparison.settings.nodes and known.rank_losses != self.losses[key]:
            raise LossChanged(
                f"{arm.name}: the first steps on these nodes are not those that were learned, to the last bit"
            )
        return Learned(losses=self.losses[key], series=LearnedSeries(validations=known.validations[-1:]))

    def _known(self, cell: str) -> Trained:
        return received(Trained, self.order["learned"][cell], "the order")

    def _write(self, comparison: "ComparisonRun", name: str, cell: str, group: Message) -> CellSummary:
        from testbed.driver.arm_record import arm_record
        from testbed.driver.emulate import conditions, summary_of, write_arm

        result = comparison.results[name]
        if comparison.settings.mode == "live":
            check_learned(result, self._known(cell))
        summary = CellSummary(
            **vars(summary_of(result, arm_record(comparison, result))),
            **group["about"][cell],
            cell=cell,
            point=group["point"],
            network=conditions(comparison),
        )
        write_arm(comparison, result, summary, self.environment)
        return summary


def check_learned(result: "ArmResult", known: Trained) -> None:
    """Raise `LossChanged` unless every step's loss (to the digits that are kept) and what was validated are those that
    were learned."""
    losses = [round(step.loss, 6) for step in result.steps]
    apart = next((index for index, loss in enumerate(losses) if loss != known.losses[index]), None)
    if apart is not None:
        raise LossChanged(
            f"{result.arm.name}, step {apart}: the loss on this link is {losses[apart]}, and "
            f"{known.losses[apart]} was learned: a network must change time and never arithmetic"
        )
    learned = {each.step: each.val_loss for each in known.validations}
    for each in result.validations:
        was = learned.get(each.step, each.val_loss)
        if each.val_loss != was:
            raise LossChanged(
                f"{result.arm.name}, step {each.step}: validated {each.val_loss!r} on this link, and {was!r} off "
                "it: a network must change time and never arithmetic"
            )


def main() -> int:
    """Serve one order."""
    with answering() as reply:
        order = json.loads(sys.stdin.readline())

        def serve() -> int:
            with ending_with_parent():
                return _Session(order, reply).run()

        backend = order["groups"][0]["settings"]["backend"]
        if backend == "host":
            return serve()
        return run_in_world(serve, beside_engine=backend == "docker")


if __name__ == "__main__":
    sys.exit(main())
