"""The command `testbed`: parse, call, print. Exit status 0 done, 1 failed or invalid, 2 bad usage, 130 interrupted.

Nothing heavy is imported before a command runs: a world can only be entered by a process with one thread, and
numpy and torch start theirs when they are imported.
"""

import atexit
import errno
import gc
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from emulation.doctor.capability import require_tools
from emulation.errors import CapabilityError, EmulationError, legible
from emulation.errors import UsageError as NetworkUsageError
from emulation.kernel.world import run_in_world
from emulation.nodes.base import Backend
from emulation.spec.network import Network, Node
from emulation.spec.units import Rounded
from testbed.cli.commands import (
    Clean,
    Command,
    DataCommand,
    DataShow,
    Diff,
    Doctor,
    Emulate,
    Exec,
    Learn,
    Presets,
    Report,
    Runs,
    ShapeInterface,
    SweepCommand,
    Train,
    Verify,
)
from testbed.cli.console import NARROW, WIDE, console_of
from testbed.commandline import parse
from testbed.driver.backends import make_nodes, require_image
from testbed.driver.rank import SELDOM
from testbed.errors import TestbedError, UsageError, in_words
from testbed.records import ComparisonRecord, plain
from testbed.settings.emulate import resolve
from testbed.settings.network_flags import Asked, network_for

__all__ = ["main"]

_LAYOUT = "\n\t"
"""What a log in a sentence may have."""


def main(argv: list[str] | None = None) -> int:
    """The exit status of `testbed ARGV…`."""
    gc.set_threshold(SELDOM)
    atexit.register(gc.freeze)  # nothing to collect among what stays to the end: a third of a second
    warnings.showwarning = _say_warning  # pyrefly: ignore
    arguments, program = _split(sys.argv[1:] if argv is None else argv)
    try:
        command = parse(Command, arguments)
    except UsageError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 2
    if program and not isinstance(command, Exec):
        print(f"testbed: '-- {shlex.join(program)}' belongs to testbed exec only", file=sys.stderr)
        return 2
    return _guarded(lambda: _HANDLERS[type(command)](command, program))


_show_warning = warnings.showwarning


def _say_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Ours as a sentence, others' as ever."""
    if issubclass(category, Rounded):
        print(f"testbed: {message}", file=sys.stderr)
    else:
        _show_warning(message, category, *where)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is ours, and the program behind `--`."""
    if "--" in arguments:
        where = arguments.index("--")
        return arguments[:where], arguments[where + 1 :]
    return arguments, []


def _require(backend: str, image: str | None, run: str | None = None, nodes: Sequence[Node] = ()) -> None:
    """Raise CapabilityError where nodes of this kind cannot be, UsageError where others have the names of this run's,
    before anything is created."""
    if backend == "host":
        return
    if backend == "docker":
        require_image(image, run, nodes)
    if backend == "netns" or os.geteuid() == 0:
        require_tools()


def _in_world(main: Callable[[], int], backend: str) -> int:
    """`main` in a private world; what it raises on purpose becomes a sentence and a status there."""
    return run_in_world(lambda: _guarded(main), beside_engine=backend == "docker")


def _guarded(main: Callable[[], int]) -> int:
    """The status of `main`, with every expected failure said in a sentence."""
    try:
        return main()
    except (UsageError, NetworkUsageError, CapabilityError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 2
    except (TestbedError, EmulationError) as error:
        print(f"testbed: {legible(f'{error}', keep=_LAYOUT)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"testbed: {legible(in_words(error))}", file=sys.stderr)
        return 2 if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else 1
    except KeyboardInterrupt:
        print("testbed: interrupted; everything is taken down", file=sys.stderr)
        return 130


def _emulate(command: Emulate, _: list[str]) -> int:
    from testbed.rundir.machine_lock import machine_lock

    settings = resolve(command, command=shlex.join(["testbed", *sys.argv[1:]]))
    if command.dry_run:
        from testbed.cli.dry_run import dry_run

        print(dry_run(settings))
        return 0

    def run() -> int:
        from testbed.driver.emulate import emulate
        from testbed.learn.dry_build import rehearse_codecs
        from testbed.rundir.progress import Progress

        rehearse_codecs(settings, settings.arms)
        console = console_of(NARROW, stderr=command.json)
        with Progress(console, settings.folder) as progress:
            record = emulate(settings, progress.report)
        return _conclude(settings.folder, record, console, command)

    _require(settings.backend, settings.image, settings.folder.name, settings.network.nodes)
    with machine_lock(share=settings.share):
        if settings.backend == "host":
            return run()
        return _in_world(run, settings.backend)


def _conclude(folder: Path, record: ComparisonRecord, console: Console, command: Emulate) -> int:
    from testbed.analysis.comparison.load import load_comparison
    from testbed.analysis.comparison.summary import print_summary

    print_summary(load_comparison(folder), console)
    _say_where(folder, console, report=not command.no_report)
    if command.json:
        print(json.dumps(plain(record)))
    invalid = [arm.arm for arm in record.arms if not arm.valid]
    if invalid:
        console.print(f"status 1: {', '.join(invalid)} not valid, and why stands above", style="red")
    return 1 if invalid else 0


def _say_where(folder: Path, console: Console, *, report: bool) -> None:
    """Draw figures and write the report, unless they are not wanted yet, and say where everything is."""
    said = f"\neverything is in {escape(str(folder))}"
    if not report:
        console.print(f"{said}; figures and report: testbed report {escape(str(folder))}", soft_wrap=True)
        return
    from testbed.analysis.report import write_report, write_run_figures

    write_run_figures(folder)
    console.print(f"{said}, figures in figures/; to read: {escape(str(write_report(folder)))}")


def _verify(command: Verify, _: list[str]) -> int:
    from emulation.measure.verify import Tolerance
    from emulation.spec.units import parse_delay, parse_percent
    from testbed.cli.execute import verify_links
    from testbed.rundir.machine_lock import machine_lock

    network = _network(command)
    tolerance = Tolerance(
        rate=parse_percent(command.tolerance_rate), round_trip_us=parse_delay(command.tolerance_round_trip)
    )
    nodes = make_nodes(network, command.backend, run=f"verify-{os.getpid()}", image=command.image)
    if command.dry_run:
        return _print_commands(nodes)
    _require(command.backend, command.image)
    with machine_lock(share=command.share):
        return _in_world(lambda: verify_links(nodes, tolerance, as_json=command.json), command.backend)


def _exec(command: Exec, program: list[str]) -> int:
    from emulation.spec.schedule import load_schedule
    from testbed.cli.execute import ExecRequest, run_everywhere
    from testbed.rundir.machine_lock import machine_lock

    if not program and command.shell is None:
        raise UsageError("no command was given: type it behind '--', as in: testbed exec --bw 300mbit -- hostname -I")
    network = _network(command)
    errand = ExecRequest(
        program,
        schedule=load_schedule(command.schedule, network) if command.schedule else None,
        shell=command.shell,
        expect_bytes=command.expect_bytes,
        record=command.record,
    )
    errand.check(network)
    nodes = make_nodes(network, command.backend, run=f"exec-{os.getpid()}", image=command.image)
    if command.dry_run:
        return _print_commands(nodes, shlex.join(program))
    _require(command.backend, command.image)
    with machine_lock(share=command.share):
        return _in_world(lambda: run_everywhere(nodes, errand), command.backend)


def _network(asked: Asked) -> Network:
    """The network of a command that trains nothing."""
    if asked.bw is None and asked.network is None:
        raise UsageError("no links were asked for: give a rate, --bw 300mbit, or a network, --network cable")
    if asked.backend == "host":
        raise UsageError("host nodes are loopback, where there is no link: type --backend netns or docker")
    return network_for(asked)


def _print_commands(nodes: Backend, program: str | None = None) -> int:
    from testbed.cli.dry_run import network_commands

    print("\n".join(network_commands(nodes)))
    if program:
        print("\n".join(f"on {node.name}: {program}" for node in nodes.network.nodes))
    return 0


def _shape(command: ShapeInterface, _: list[str]) -> int:
    from testbed.cli.shape import shape

    return shape(command)


def _train(command: Train, _: list[str]) -> int:
    from testbed.trainer.launch import train

    return train(command)


def _learn(command: Learn, _: list[str]) -> int:
    from testbed.analysis.quality.pages import markdown
    from testbed.learn.run import dry_run, folder_of, learn
    from testbed.rundir.progress import Progress

    if command.dry_run:
        print(dry_run(command))
        return 0
    console = console_of(WIDE, stderr=command.json)
    with Progress(console) as progress:
        record, failed = learn(command, progress.report, live=console.is_terminal)
    said = json.dumps(plain(record) | {"failed": failed}) if command.json else f"\n{markdown(record)}\n"
    print(said if command.json else f"{said}everything is in {folder_of(command)}")
    return 1 if failed else 0


def _sweep(command: SweepCommand, _: list[str]) -> int:
    from testbed.rundir.machine_lock import machine_lock
    from testbed.rundir.progress import Progress
    from testbed.sweep.run import dry_run, folder_of, sweep

    if command.dry_run:
        print(dry_run(command))
        return 0
    require_tools()
    console = console_of(WIDE, stderr=command.json)
    with machine_lock(share=command.share), Progress(console, folder_of(command)) as progress:
        folder, record = sweep(command, progress.report, live=console.is_terminal)
    from testbed.analysis.sweep.results import load_sweep
    from testbed.analysis.sweep.summary import print_sweep

    print_sweep(done := load_sweep(folder), console)
    if record.failed:
        logs = folder / ("cells/*/output.log" if done.of_commands else "logs")
        console.print(f"logs of what failed: {escape(str(logs))}", soft_wrap=True)
    _say_where(folder, console, report=not command.no_report)
    if command.json:
        print(json.dumps(plain(record)))
    states = {*done.table["state"], *(check.state for check in record.checks)}
    return 1 if states & {"failed", "invalid"} else 0


def _data(command: DataCommand, _: list[str]) -> int:
    from testbed.cli.corpora import prepare_corpus, show_corpus

    if isinstance(command.what, DataShow):
        return show_corpus(command.what.folder, as_json=command.what.json)
    asked = asdict(command.what)
    return prepare_corpus(as_json=asked.pop("json"), **asked)


def _doctor(command: Doctor, _: list[str]) -> int:
    from emulation.doctor.probe import probe
    from testbed.cli.tables import capability_table
    from testbed.rundir.directory import RUNS

    capabilities = probe(RUNS)
    if command.json:
        print(json.dumps({"schema_version": 1, "capabilities": [asdict(each) for each in capabilities]}, indent=2))
    else:
        console_of(WIDE).print(capability_table(capabilities))
    return 0 if all(each.ok for each in capabilities if each.needed) else 1


def _presets(command: Presets, _: list[str]) -> int:
    from testbed.cli.presets import list_presets, presets_table

    presets = list_presets()
    if command.json:
        print(json.dumps(presets, indent=2))
    else:
        console_of(WIDE).print(presets_table(presets))
    return 0


def _runs(command: Runs, _: list[str]) -> int:
    from testbed.rundir.directory import run_folder

    if command.watch is not None:
        from testbed.rundir.progress import watch

        return watch(run_folder(command.watch), Console())
    if command.tensorboard is not None:
        from testbed.cli.tensorboard import export

        print(export(run_folder(command.tensorboard), lambda text: print(f"testbed: {text}", file=sys.stderr)))
        return 0
    from testbed.cli.tables import list_runs, runs_table

    runs = list_runs(kind=command.kind, state=command.state, name=command.name)
    if command.json:
        print(json.dumps({"schema_version": 1, "runs": runs}, indent=2))
    else:
        console_of(WIDE).print(runs_table(runs))
    return 0


def _diff(command: Diff, _: list[str]) -> int:
    from testbed.cli.differences import show

    show(command.one, command.other, console_of(WIDE), as_json=command.json)
    return 0


def _report(command: Report, _: list[str]) -> int:
    from testbed.analysis.report import write_report, write_run_figures
    from testbed.rundir.directory import run_folder

    folder = run_folder(command.run)
    report = write_report(folder)
    if not (folder / "figures").is_dir():
        write_run_figures(folder)
    print(report)
    return 0


def _clean(command: Clean, _: list[str]) -> int:
    from testbed.cli.clean import clean

    print(clean(dry_run=command.dry_run))
    return 0


_HANDLERS: dict[type, Callable[..., int]] = {
    Emulate: _emulate,
    Verify: _verify,
    Exec: _exec,
    ShapeInterface: _shape,
    Train: _train,
    Learn: _learn,
    SweepCommand: _sweep,
    DataCommand: _data,
    Doctor: _doctor,
    Presets: _presets,
    Runs: _runs,
    Diff: _diff,
    Report: _report,
    Clean: _clean,
}
