"""`testbed sweep FILE.toml`: learn every trainer once, time every arm on every network once, compose.

    runs/<name>/config.json             the file, resolved, and which cell is what
    runs/<name>/learned/<hash>.json     a trainer: losses, validations (as `testbed learn` writes them)
    runs/<name>/cells/<hash>/           a cell: summary.json, link/, metrics/, trace/, ledger.json; or FAILED
    runs/<name>/results.{parquet,csv}   a row per cell and seed;  curves.parquet: per step;  figures/

Killed at any time, the same command goes on with what is missing: a cell is done once its summary.json is there.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from testbed.commandline import flag
from testbed.config.tree import read_toml, table_of
from testbed.driver.backends import require_image
from testbed.errors import UsageError
from testbed.formats import counted
from testbed.learn.experiment import Cell
from testbed.learn.pool import Learning, groups_of, order_of
from testbed.learn.run import alone, named_folder, rehearse_all
from testbed.records import (
    CellEntry,
    CheckEntry,
    CommandEntry,
    ExcludedPoint,
    PointNetwork,
    SweepConfig,
    SweepRecord,
    described,
    write_json,
)
from testbed.rundir.directory import environment, interpreter
from testbed.rundir.older import left_aside
from testbed.rundir.progress import Reporter, minutes
from testbed.sweep.cells import Timed, cells_of, checks_of
from testbed.sweep.grid import Grid, points_of
from testbed.sweep.hosts import Hosts
from testbed.sweep.plan import SweepPlan, by, estimate, learning_seconds
from testbed.sweep.schedule import time_missing
from testbed.sweep.user_commands import CommandCell, command_cells_of, dry_run_commands, run_commands

__all__ = ["SweepCommand", "dry_run", "folder_of", "sweep"]


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """Every arm on every network of a grid: trainers learned once, cells timed once, loss against time composed.

    For example: testbed sweep experiments/bandwidth_latency.toml. Killed at any time, it goes on with what is missing.
    """

    file: Annotated[tyro.conf.Positional[str], flag("FILE")]
    """The grid, a .toml file (docs/sweeps.md)."""
    name: Annotated[str | None, flag("NAME")] = None
    """The folder in runs/; the file's name unless given. Cells that are there are not run again."""
    shard: Annotated[str | None, flag("I/N")] = None
    """Only the I-th of N parts, for N machines; their folders in runs/ are merged by copying, then type it without."""
    launcher: Literal["local", "ray"] = "local"
    """On this machine, or on the hosts of a Ray, one cell at a time on each (docs/sweeps.md)."""
    ray_address: Annotated[str | None, flag("HOST:PORT")] = None
    """Of a Ray that runs; unless given, one is started here, on loopback alone."""
    keep_older: bool = False
    """Keep cells of the same settings that other code, data or versions have made, and mark them in every table and
    figure; without it they are left aside and what is missing is run."""
    full: bool = False
    """Train every cell on its link as well, with every seed and to the end, not only those that check (hours)."""
    share: bool = False
    """Run although another run uses this machine."""
    dry_run: bool = False
    """Print every cell, whether it is there, and about how long the rest takes; do nothing."""
    no_report: bool = False
    """Leave out figures and report.html; 'testbed report' makes both later."""
    json: bool = False
    """Print sweep.json at the end."""


def folder_of(asked: SweepCommand) -> Path:
    """Where everything is written."""
    return named_folder(asked.name if asked.name is not None else Path(asked.file).stem)


def _asked(asked: SweepCommand) -> tuple[Grid, Path]:
    """The file, and the folder in runs/."""
    path = Path(asked.file)
    sweep = read_toml(Grid, path)
    folder = folder_of(asked)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "learned").is_dir():
        raise UsageError(f"{folder} is another command's; choose another with --name")
    return sweep, folder


def _plan(asked: SweepCommand, sweep: Grid, folder: Path) -> SweepPlan:
    """What was asked for, checked as far as can be without torch."""
    cells = cells_of(sweep, folder, shlex.join(["testbed", *sys.argv[1:]]))
    return SweepPlan(
        sweep=sweep,
        cells=cells,
        excluded=points_of(sweep)[1],
        folder=folder,
        checks=checks_of(sweep, cells, full=asked.full),
        shard=_shard(asked.shard),
        keep_older=asked.keep_older,
    )


def _shard(text: str | None) -> tuple[int, int]:
    """ "2/3" is the second of three parts: (1, 3)."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UsageError(f"--shard {text}: type a part and how many there are, such as 1/3, 2/3 or 3/3")
    return int(match[1]) - 1, int(match[2])


def dry_run(asked: SweepCommand) -> str:
    """Every cell in the order in which they are timed, and what is left out."""
    asked_for, folder = _asked(asked)
    if asked_for.command:
        return dry_run_commands(_errands(asked, asked_for), folder)
    plan = _plan(asked, asked_for, folder)
    timed = plan.timed
    lines = [
        f"{'there  ' if plan.is_timed(cell.hash) else 'missing'}  {cell.hash}  {cell.words}"
        for cell in (*plan.cells, *plan.checks)
        if cell.hash in timed
    ]
    lines += [f"left out         {described(each.point)}: {each.reason}" for each in plan.excluded]
    missing = [cell for cell in plan.timed.values() if not plan.is_timed(cell.hash)]
    learning = [each for each in plan.trainers.values() if not plan.learned_file(each).is_file()]
    return "\n".join(
        [
            *lines,
            f"{counted(len(plan.cells), 'cell')} into {plan.folder}: {counted(len(learning), 'trainer')} to learn, "
            f"{counted(len(missing), 'cell')} to time or train, about "
            f"{minutes(learning_seconds(learning) + estimate(missing))} for these",
            *([] if plan.keep_older else filter(None, [left_aside(plan.older)])),
        ]
    )


def sweep(asked: SweepCommand, report: Reporter, *, live: bool = False) -> tuple[Path, SweepRecord]:
    """Do what is missing, then write the tables; the folder, and the record with `failed` reasons by cell."""
    asked_for, folder = _asked(asked)
    if asked_for.command:
        return folder, _sweep_command(asked, asked_for, folder, report)
    plan = _plan(asked, asked_for, folder)
    if asked.launcher == "local":
        _require_containers(plan)
    with _hosts(asked) as hosts:
        if not plan.keep_older and (note := left_aside(plan.older)):
            report(note)
        report("building every trainer once")
        rehearse_all(list(plan.trainers.values()))
        _rehearse_codecs(plan)
        with _folder(folder, _config(plan)):
            return folder, _done(plan, report, hosts, live)


def _rehearse_codecs(plan: SweepPlan) -> None:
    from testbed.learn.dry_build import rehearse_codecs  # and with it torch

    alike = by(plan.timed.values(), lambda cell: json.dumps([cell.asked[key] for key in ("preset", "target", "arm")]))
    for cell, *_ in alike.values():  # whatever their links are
        rehearse_codecs(cell.settings, [cell.arm])


def _require_containers(plan: SweepPlan) -> None:
    """Before anything is made: this machine's engine has what the grid's containers are of, and what is learned here
    can be found again in them, to the last bit."""
    wanted = [cell.settings for cell in (*plan.cells, *plan.checks) if cell.settings.backend == "docker"]
    for image in {each.image for each in wanted}:
        nodes = max((each.network.nodes for each in wanted if each.image == image), key=len)
        theirs, ours = require_image(image, plan.folder.name, nodes), interpreter()
        for name in ("torch", "numpy"):
            there, here = (each.packages[name].partition("+")[0] for each in (theirs, ours))  # of any build
            if there != here:
                raise UsageError(
                    f"a sweep learns here and times in containers, where losses must be the same to the last bit: the "
                    f"image has {name} {there}, and here is {here}; after 'make setup' and 'make image' both have what "
                    "constraints.txt says"
                )


def _done(plan: SweepPlan, report: Reporter, hosts: Hosts | None, live: bool) -> SweepRecord:
    from testbed.analysis.sweep.results import conclude

    failed = time_missing(plan, report, hosts, unlearned=_learn(plan, report, hosts, live))
    return conclude(plan.folder, failed).record


@contextmanager
def _hosts(asked: SweepCommand) -> Iterator[Hosts | None]:
    """Where orders are served, if not here."""
    if asked.launcher == "local":
        if asked.ray_address is not None:
            raise UsageError("--ray-address is for --launcher ray: type both, or neither")
        yield None
        return
    with Hosts(asked.ray_address) as hosts:
        yield hosts


def _errands(command: SweepCommand, asked: Grid) -> list[CommandCell]:
    """This part's of a user's own command."""
    flags = {"--launcher ray": command.launcher == "ray", "--full": command.full, "--keep-older": command.keep_older}
    for name, given in flags.items():
        if given:
            raise UsageError(f"{name} is for grids of arms; a command is run here, and on several machines by --shard")
    which, of = _shard(command.shard)
    return command_cells_of(asked)[which::of]


def _sweep_command(command: SweepCommand, asked: Grid, folder: Path, report: Reporter) -> SweepRecord:
    from testbed.analysis.sweep.results import conclude_commands

    own = _errands(command, asked)
    for image in {point.get("image") for point in points_of(asked)[0] if point.get("backend") == "docker"}:
        require_image(image if image is None else f"{image}")
    cells = tuple(CommandEntry(cell=each.hash, seed=each.seed, point=each.varied) for each in command_cells_of(asked))
    with _folder(folder, replace(_about(asked), commands=cells)):
        return conclude_commands(folder, run_commands(own, folder, report)).record


@contextmanager
def _folder(folder: Path, config: SweepConfig) -> Iterator[None]:
    """The sweep's own, with what is known before it begins."""
    with alone(folder):
        (folder / "learned").mkdir(exist_ok=True)
        write_json(folder / "config.json", config)
        write_json(folder / "environment.json", environment())
        (folder / "command.txt").write_text(shlex.join(["testbed", *sys.argv[1:]]) + "\n")
        yield


def _config(plan: SweepPlan) -> SweepConfig:
    cells = tuple(
        CellEntry(
            cell=plan.used(cell.hash),
            arm=cell.arm.name,
            point=cell.varied,
            older=_why_older(plan, cell),
            network=PointNetwork(
                bandwidth_bps=cell.settings.rate_bps,
                one_way_delay_seconds=cell.settings.network.longest_round_trip_us / 2e6,
                packet_loss=max(link.loss for link in cell.settings.network.links),
            ),
            learned={each.seed: plan.used(each.hash) for each in cell.learned},
            nodes_learned=cell.whole.nodes,
        )
        for cell in plan.cells
    )
    twins = {(described(cell.point), cell.arm.name): plan.used(cell.hash) for cell in plan.cells}
    checks = tuple(
        CheckEntry(
            cell=plan.used(check.hash),
            of=twins[described(check.point), check.arm.name],
            arm=check.arm.name,
            point=described(check.varied),
            seed=check.seeds[0],
            steps=check.settings.live_steps or 0,
        )
        for check in plan.checks
    )
    return replace(_about(plan.sweep), cells=cells, checks=checks)


def _why_older(plan: SweepPlan, cell: Timed) -> str:
    """What of a cell another state has made, and in what it differs; empty if it is all of this one."""
    parts = {"time": {plan.why_older(cell.hash)}, "loss": {plan.why_older(each.hash) for each in cell.learned}}
    named = {part: ", ".join(sorted(whys - {""})) for part, whys in parts.items()}
    return "; ".join(f"{part} of other {why}" for part, why in named.items() if why)


def _about(sweep: Grid) -> SweepConfig:
    """Without its cells."""
    return SweepConfig(
        kind="command" if sweep.command else "sweep",
        title=sweep.title,
        question=sweep.question,
        exact=sweep.exact,
        control=sweep.control,
        sweep=table_of(sweep),
        varied=tuple(key for axis in sweep.axes() for key in axis),
        excluded=tuple(ExcludedPoint(point=each.point, reason=each.reason) for each in points_of(sweep)[1]),
    )


def _learn(plan: SweepPlan, report: Reporter, hosts: Hosts | None, live: bool) -> dict[str, str]:
    """Learn what is missing; reasons by trainer of what failed."""
    trainers = plan.trainers
    missing = [trainer for trainer in trainers.values() if not plan.learned_file(trainer).is_file()]
    if not missing:
        report(f"{counted(len(trainers), 'trainer')}: all there")
        return {}
    if hosts is not None:
        return _learn_on(hosts, plan, missing, report)
    learning = Learning(plan.folder / "learned", plan.folder / "logs", missing, len(trainers), report, live)
    return learning.run(os.cpu_count() or 1)


def _learn_on(hosts: Hosts, plan: SweepPlan, missing: list[Cell], report: Reporter) -> dict[str, str]:
    report(f"{counted(len(plan.trainers), 'trainer')}: {len(missing)} to learn, on the hosts of Ray")
    failed: dict[str, str] = {}
    while missing:
        orders, before = [order_of(group, Path("learned")) for group in groups_of(missing)], len(failed)
        for order, messages in hosts.serve("testbed.learn.worker", orders, plan.folder):
            lost = [name for name in order["arms"] if not plan.learned_name(name).is_file()]
            said = [message for message in messages if "failed" in message]
            named = {name: message["why"] for message in said for name in lost if name == message["failed"]}
            why = said[0]["why"] if said else "its process ended early"
            failed |= named or dict.fromkeys(lost if len(lost) == len(order["arms"]) else [], why)
            report(f"  learned {len(order['arms']) - len(lost)} of {len(order['arms'])} with seed {order['seed']}")
        left = [each for each in missing if each.hash not in failed and not plan.learned_file(each).is_file()]
        if len(left) == len(missing) and len(failed) == before:
            return failed | {each.hash: "its process ended early" for each in left}
        missing = left
    return failed
