"""A grid of a user's own command: every point runs it on all nodes, as `testbed exec` does.

A point's row is wall time, bytes, exit status, and what the program said: of every JSON object that it printed on a
line of its own (or behind a progress bar's carriage return), numbers, texts and truth values by key; a later line, and
a later node, overrides.
"""

import hashlib
import json
import re
import shlex
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from emulation.spec.schedule import load_schedule
from testbed.config import parse
from testbed.data.integrity import file_sha256
from testbed.driver.backends import image_digest
from testbed.errors import UsageError
from testbed.formats import counted
from testbed.records import CommandSummary, described, read_record, write_json
from testbed.rundir.directory import environment, write_failed
from testbed.rundir.progress import minutes
from testbed.settings.network_flags import Asked, network_for
from testbed.sweep.grid import Grid, Point, points_of

__all__ = ["CommandCell", "command_cells_of", "dry_run_commands", "run_commands"]

_VERSION = 3
_LINE = re.compile(r"\S+: (.*)", re.DOTALL)
"""What a node prints, behind its name."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""Of a terminal (ECMA-48, control sequences): colours, and the ends of progress bars."""


@dataclass(frozen=True, kw_only=True)
class CommandCell:
    """The command at one point, with one seed."""

    point: Point
    varied: Point
    seed: int
    program: tuple[str, ...]
    flags: tuple[str, ...]
    """Flags of `testbed exec`."""
    content: dict[str, str]
    """What the flags and the command name, as digests: the network and the schedule, resolved, and every file."""

    @property
    def hash(self) -> str:
        """Of all that is set, and what it names by content; the name of the folder with its results."""
        config = {"version": _VERSION, "program": self.program, "flags": self.flags, "seed": self.seed}
        config |= {"varied": self.varied, "content": self.content}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def command_cells_of(sweep: Grid) -> list[CommandCell]:
    """Every point and seed, in the order of the file; raises `UsageError` that names what is wrong."""
    keys = [key for axis in sweep.axes() for key in axis]
    found = []
    for point in points_of(sweep)[0]:
        links = {key: value for key, value in point.items() if not key.startswith("var.")}
        schedule = links.pop("schedule", None)
        network = network_for(parse(Asked, links, "a point of the grid"))
        if not network.shaped:
            raise UsageError(f"at {described(point)}: no rate was given: vary bw or network, or set one in [settings]")
        flags = [part for key, value in links.items() for part in (f"--{key.replace('_', '-')}", f"{value}")]
        flags += ["--schedule", f"{schedule}"] if schedule is not None else []
        content = {"network": _digest(network)}
        if links.get("backend") == "docker":
            image = links.get("image")
            content["image"] = image_digest(image if isinstance(image, str) else None) or "not there"
        content |= {"schedule": _digest(load_schedule(f"{schedule}", network))} if schedule is not None else {}
        for seed in sweep.seeds:
            words = {key.removeprefix("var."): value for key, value in point.items() if key.startswith("var.")}
            program = tuple(_filled(part, words | {"seed": seed}) for part in sweep.command)
            found.append(
                CommandCell(
                    point=point,
                    varied={key: point[key] for key in keys},
                    seed=seed,
                    program=program,
                    flags=tuple(flags),
                    content=content | {name: file_sha256(Path(name)) for name in _files_of(program)},
                )
            )
    return found


def _digest(what: Any) -> str:
    """Of plain data, whatever file it was read from."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _files_of(program: Iterable[str]) -> list[str]:
    """Files that a command's words name: whole, behind `--flag=`, or within a line for a shell."""
    found = []
    for part in program:
        try:
            inner = shlex.split(part) if " " in part else []
        except ValueError:  # no line for a shell
            inner = []
        for word in (part, *inner):
            found += [name for name in (word, word.partition("=")[2]) if name and _is_file(name)]
    return list(dict.fromkeys(found))


def _is_file(part: str) -> bool:
    try:
        return Path(part).is_file()
    except (OSError, ValueError):  # too long for a name, or no name at all
        return False


def _filled(text: str, words: Mapping[str, JsonValue]) -> str:
    """Braces replaced; doubled ones are meant."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        if unknown := names - words.keys():
            known = ", ".join(sorted(words))
            raise UsageError(f"command: {{{min(unknown)}}} stands for nothing; known are {known} (var.… keys)")
        return text.format(**words)
    except (ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"command: {text!r}: {error}; a brace that is meant is doubled") from None


def _run(errand: CommandCell, folder: Path) -> str | None:
    """Run it and write `summary.json`; why it failed, if it did."""
    folder.mkdir(parents=True, exist_ok=True)
    log, record = folder / "output.log", folder / "record.json"
    write_json(folder / "environment.json", environment())
    command = [sys.executable, "-m", "testbed", "exec", *errand.flags, "--share", "--record", str(record), "--"]
    with log.open("w") as output:
        done = subprocess.run(
            [*command, *errand.program], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if not record.is_file():
        return _last_words(log) or f"it ended with status {done.returncode} before its links were proven"
    moved = json.loads(record.read_text())
    status = max(moved["exit_status"].values(), default=0)
    summary = CommandSummary(
        cell=errand.hash,
        point=errand.varied,
        seed=errand.seed,
        command=tuple(errand.program),
        wall_seconds=moved["wall_seconds"],
        exit_status=status,
        sent_bytes=moved["sent_bytes"],
        received_bytes=moved["received_bytes"],
        pairs=tuple(moved["pairs"]),
        said=dict(_said(log)),
    )
    write_json(folder / "summary.json", summary)
    return None


def dry_run_commands(errands: list[CommandCell], folder: Path) -> str:
    """Every cell, and whether it is there."""
    lines = []
    for errand in errands:
        there = (folder / "cells" / errand.hash / "summary.json").is_file()
        flags, program = shlex.join(errand.flags), shlex.join(errand.program)
        lines.append(f"{'there  ' if there else 'missing'}  {errand.hash}  testbed exec {flags} -- {program}")
    return "\n".join([*lines, f"{counted(len(lines), 'cell')} into {folder}"])


def run_commands(errands: list[CommandCell], folder: Path, report: Callable[[str], None]) -> dict[str, str]:
    """Run what is missing, one after the other; reasons by cell of what failed."""
    failed: dict[str, str] = {}
    missing = [each for each in errands if not (folder / "cells" / each.hash / "summary.json").is_file()]
    report(f"{counted(len(errands), 'cell')}: {len(errands) - len(missing)} there, {len(missing)} to run")
    started = time.monotonic()
    for number, errand in enumerate(missing, 1):
        place = folder / "cells" / errand.hash
        shutil.rmtree(place, ignore_errors=True)  # of an attempt that did not end
        why = _run(errand, place)
        where = f"{described(errand.varied)}, seed {errand.seed}"
        left = (time.monotonic() - started) / number * (len(missing) - number)
        if why is None:
            if not read_record(CommandSummary, place / "summary.json").said:
                report(f"{where}: it printed no JSON object on a line of its own, so its row holds no said_… column")
            report(f"{where}: done ({number}/{len(missing)} cells, about {minutes(left)} left)")
        else:
            failed[errand.hash] = why
            write_failed(place, why)
            report(f"{where} FAILED: {why}; see {place / 'output.log'}")
    return failed


def _said(log: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values of every JSON object on a line of its own, or behind what a progress bar has drawn there."""
    for line in log.read_bytes().decode(errors="replace").split("\n"):
        if match := _LINE.match(line):
            first, *drawn = _ESCAPES.sub("", match[1]).split("\r")
            yield from _object(first.strip())
            for part in drawn:
                yield from _object(part[max(0, part.find("{")) :].strip())


def _object(text: str) -> Iterator[tuple[str, Any]]:
    if not (text.startswith("{") and text.endswith("}")):
        return
    try:
        data = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return
    for key, value in data.items():
        if isinstance(value, str | int | float | bool):
            yield _utf8(key), _utf8(value) if isinstance(value, str) else value


def _integer(digits: str) -> int | str:
    """As it stands where it has more digits than Python makes a number of."""
    try:
        return int(digits)
    except ValueError:
        return digits


def _utf8(text: str) -> str:
    """JSON can hold halves of characters, which no file can."""
    return text.encode("utf-8", "replace").decode()


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("testbed: ")]
    return lines[-1].removeprefix("testbed: ") if lines else ""
