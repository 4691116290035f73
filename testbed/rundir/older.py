"""Cells of the same settings that other code, data or versions have made: left aside, or kept and marked."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from testbed.records import read_json
from testbed.rundir.identity import Content

__all__ = ["Older", "find_older", "left_aside"]

KEEP = "--keep-older"
_CAME_LATER: dict[str, JsonValue] = {
    "ids": {"layers": 1, "window": 0},
    "options": {},
    "registers": 1,
    "section": 16,
    "lead": 5,
    "marks": 32,
    "warm_contexts": [],
}
"""Settings that records of before do not have, with what they are where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Older:
    """A cell that is there in place of the wanted one."""

    hash: str
    why: str
    """What differs: code, data, torch …"""


def find_older(
    wanted: Mapping[str, tuple[Path, dict[str, JsonValue], Content]], files: Iterable[Path]
) -> dict[str, Older]:
    """By hash of a wanted cell that is not there: the newest of the same settings among `files`.

    wanted: the file where a cell is once it is done, what was asked for, and what decides it besides, by hash.
    """
    missing = {key: each for key, each in wanted.items() if not each[0].is_file()}
    if not missing:
        return {}
    there: dict[str, tuple[str, Content]] = {}
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        record = read_json(path)
        if isinstance(record, dict) and "asked" in record and "content" in record:
            there[_key(record["asked"])] = record["cell"], record["content"]
    found = {}
    for key, (_, asked, content) in missing.items():
        if (known := there.get(_key(asked))) is not None:
            differs = sorted(part for part in {*content, *known[1]} if content.get(part) != known[1].get(part))
            found[key] = Older(hash=known[0], why=", ".join(differs))
    return found


def left_aside(older: Mapping[str, Older]) -> str:
    """That there are such cells, and how to have them; empty without any."""
    if not older:
        return ""
    why = ", ".join(sorted({part for each in older.values() for part in each.why.split(", ")}))
    number = "1 cell is" if len(older) == 1 else f"{len(older)} cells are"
    return f"{number} there of another state ({why}) and left aside: {KEEP} keeps and marks what is"


def _key(asked: Mapping[str, JsonValue]) -> str:
    """Without what came later and is as it was before there was a choice."""
    return json.dumps(_without(asked, _CAME_LATER), sort_keys=True)


def _without(asked: Mapping[str, JsonValue], later: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for key, value in asked.items():
        if isinstance(value, dict):
            value = _without(value, later)
        if key not in later or json.dumps(value) != json.dumps(later[key]):  # lists and tuples alike
            found[key] = value
    return found
