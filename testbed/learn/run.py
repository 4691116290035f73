"""`testbed learn FILE.toml`: learn every preset × arm × seed of an experiment, off the network, and hold them together.

A network changes time and never arithmetic, so what an arm learns needs none: every cell is trained by the real
trainer on ranks that are threads of one process (`testbed.learn.worker`). Results are a file per cell, written by
rename under the hash of what decides them: killed at any time, the same command goes on with what is missing.

    runs/<name>/cells/<hash>.json     a cell: configuration, losses, validations, bytes, drift of the replicas
    runs/<name>/quality.{json,md}     the table;  results.{parquet,csv}, figures/
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import JsonValue

from testbed.commandline import flag
from testbed.config.tree import table_of
from testbed.errors import UsageError
from testbed.formats import counted
from testbed.learn.experiment import Cell, Experiment, cells_of, chosen, load_experiment
from testbed.learn.pool import Learning
from testbed.records import ComparisonRecord, LearnedCell, QualityRecord, read_record, write_json
from testbed.rundir.directory import RUNS, environment
from testbed.rundir.older import find_older, left_aside

__all__ = ["Learn", "alone", "dry_run", "folder_of", "learn", "named_folder", "rehearse_all"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Learn every preset, arm and seed of an experiment, off the network, and compare what they know at the end.

    For example: testbed learn experiments/codecs.toml. Killed at any time, it goes on with what is missing.
    """

    file: Annotated[tyro.conf.Positional[str], flag("FILE")]
    """The experiment, a .toml file (docs/quality.md)."""
    name: Annotated[str | None, flag("NAME")] = None
    """The folder in runs/; the file's name unless given. Cells that are there are not learned again."""
    jobs: Annotated[int | None, flag("N")] = None
    """Processes at a time; the number of cores unless given. 0 learns nothing and shows what is there."""
    presets: Annotated[str | None, flag("NAME,…")] = None
    """Only these presets of the experiment."""
    arms: Annotated[str | None, flag("ARM,…")] = None
    """Only these arms."""
    seeds: Annotated[str | None, flag("N,…")] = None
    """Only these seeds, or others instead of the experiment's."""
    reuse: Annotated[str | None, flag("RUN,…")] = None
    """Other folders in runs/, from which cells of the same configuration are copied."""
    times: Annotated[str | None, flag("FILE")] = None
    """comparison.json of an emulated run: its seconds per step, by arm, for a comparison at equal time."""
    keep_older: bool = False
    """Keep cells of the same settings that other code, data or versions have learned, and say so in the table."""
    dry_run: bool = False
    """Print every cell and whether it is there, and do nothing."""
    json: bool = False
    """Print quality.json at the end."""


def learn(asked: Learn, report: Callable[[str], None], *, live: bool = False) -> tuple[QualityRecord, dict[str, str]]:
    """Learn what is missing, then write the table: its record, and why cells failed, by hash. `live`: say each step."""
    experiment, cells, folder = resolve(asked)
    report("building every trainer once")
    rehearse_all(cells)
    for name, caution in {cell.arm.name: cell.arm.caution for cell in cells if cell.arm.caution}.items():
        report(f"{name}: {caution}")
    times = None if asked.times is None else read_record(ComparisonRecord, Path(asked.times))
    with alone(folder):
        for other in (asked.reuse or "").split(",") if asked.reuse else ():
            _copy_cells(cells, RUNS / other.strip() / "cells", folder / "cells")
        files = _files(folder, cells, report, keep_older=asked.keep_older)
        write_json(folder / "config.json", _config(experiment, cells, files))
        missing = {cell.hash: cell for cell in cells if not files[cell.hash].is_file()}
        jobs = (os.cpu_count() or 1) if asked.jobs is None else asked.jobs
        failed: dict[str, str] = {}
        if missing and jobs:
            write_json(folder / "environment.json", environment())
            failed = Learning(
                folder / "cells",
                folder / "logs",
                list(missing.values()),
                len({cell.hash for cell in cells}),
                report,
                live,
            ).run(jobs)
        return _conclude(experiment, cells, folder, files, times, report), failed


def resolve(asked: Learn) -> tuple[Experiment, list[Cell], Path]:
    """What was asked for, checked as far as can be without torch."""
    experiment = chosen(load_experiment(asked.file), presets=asked.presets, arms=asked.arms, seeds=asked.seeds)
    if asked.jobs is not None and asked.jobs < 0:
        raise UsageError(f"--jobs {asked.jobs}: it must be 0 or more")
    folder = folder_of(asked)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "cells").is_dir():
        raise UsageError(f"{folder} is another command's; choose another with --name")
    return experiment, cells_of(experiment), folder


def folder_of(asked: Learn) -> Path:
    """Where everything is written."""
    return named_folder(asked.name if asked.name is not None else Path(asked.file).stem)


def named_folder(name: str) -> Path:
    """The folder in runs/ that goes on where it was."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a run's name: letters, digits, '.', '_' and '-' can, 100 at most")
    return RUNS / name


def dry_run(asked: Learn) -> str:
    """Every cell in the order in which they are learned."""
    _, cells, folder = resolve(asked)
    notes: list[str] = []
    files = _files(folder, cells, notes.append, keep_older=asked.keep_older)
    lines = [
        f"{'there  ' if files[cell.hash].is_file() else 'missing'}  {cell.hash}  {cell.preset_name}, "
        f"seed {cell.seed}, {cell.arm.name}"
        for cell in cells
    ]
    return "\n".join([*lines, f"{counted(len(lines), 'cell')}, into {folder}", *notes])


def _files(folder: Path, cells: list[Cell], report: Callable[[str], None], *, keep_older: bool) -> dict[str, Path]:
    """Where each cell is, or will be, by hash: with `keep_older` one that another state has learned will do."""
    files = {cell.hash: _path(folder, cell) for cell in cells}
    wanted = {cell.hash: (files[cell.hash], cell.asked, cell.content) for cell in cells}
    older = find_older(wanted, (folder / "cells").glob("*.json"))
    if not keep_older:
        if note := left_aside(older):
            report(note)
        return files
    return files | {key: folder / "cells" / f"{each.hash}.json" for key, each in older.items()}


def _path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.hash}.json"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else learns into this folder. The kernel lets go of it if we die."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another testbed learn or sweep is at work in {folder}: wait, or choose another --name"
            ) from None
        yield


def _copy_cells(cells: list[Cell], source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UsageError(f"{source} is no folder of cells: --reuse names runs of testbed learn")
    for name in {f"{cell.hash}.json" for cell in cells}:
        if (source / name).is_file() and not (target / name).is_file():
            partial = target / f"{name}.partial"
            shutil.copyfile(source / name, partial)
            partial.replace(target / name)


def rehearse_all(cells: list[Cell]) -> None:
    """Build every trainer once, without anybody at the other end: what cannot be trained is said before anything is."""
    from testbed.data.integrity import check_data
    from testbed.learn.dry_build import rehearse

    seen: set[str] = set()
    for cell in cells:
        config = cell.config | {"seed": 0}
        if (key := json.dumps(config, sort_keys=True)) not in seen:
            seen.add(key)
            try:
                check_data(cell.preset.data, cell.preset.model)
                rehearse(cell.preset, cell.arm, cell.nodes)
            except UsageError as error:
                raise UsageError(f"preset {cell.preset_name}, arm {cell.arm.name}: {error}") from None


def _config(experiment: Experiment, cells: list[Cell], files: dict[str, Path]) -> dict[str, JsonValue]:
    index: list[JsonValue] = [
        {"preset": cell.preset_name, "arm": cell.arm.name, "seed": cell.seed, "cell": files[cell.hash].stem}
        for cell in cells
    ]
    return {"experiment": table_of(experiment), "cells": index}


def _provenance(cells: list[Cell], there: list[LearnedCell]) -> dict[str, JsonValue]:
    """What the rows in results.csv were made of: settings by preset and arm, code, data, versions, commits."""
    settings: dict[str, dict[str, JsonValue]] = {}
    for cell in cells:
        asked = {key: value for key, value in cell.asked.items() if key != "seed"}
        settings.setdefault(cell.preset_name, {})[cell.arm.name] = asked
    contents = {json.dumps(each.content, sort_keys=True) for each in there}
    return {
        "settings": {**settings},
        "content": [json.loads(each) for each in sorted(contents)],
        "commits": [*sorted({f"{each.environment.commit}" for each in there})],
    }


def _conclude(
    experiment: Experiment,
    cells: list[Cell],
    folder: Path,
    files: dict[str, Path],
    times: ComparisonRecord | None,
    report: Callable[[str], None],
) -> QualityRecord:
    """Everything that is made of the cells that are there."""
    from testbed.analysis.quality.judge import NamedCell, code_of, judge, results_table
    from testbed.analysis.quality.pages import mixture, write_quality

    there = [
        NamedCell(preset=cell.preset_name, arm=cell.arm.name, cell=read_record(LearnedCell, files[cell.hash]))
        for cell in cells
        if files[cell.hash].is_file()
    ]
    table = results_table(there)
    record = judge(table, **experiment.judgement, asked=len(cells), code=code_of(there), times=times)
    write_quality(record, table, folder)
    write_json(folder / "provenance.json", _provenance(cells, [each.cell for each in there]))
    if len(record.code) > 1:
        report(f"warning: {mixture(record)}")
    return record
