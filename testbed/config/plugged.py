"""What installed packages add, each by the name of an entry point: codecs, exchanges, tasks."""

import difflib
import functools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol

from pydantic import JsonValue

from testbed.config.tree import parse
from testbed.errors import UsageError

__all__ = ["Kind", "Task", "check_known", "plugged", "plugged_names", "plugged_task"]

Kind = Literal["codecs", "exchanges", "tasks"]


class Task(Protocol):
    """A task of a package of its own: a dataclass whose fields are its options (docs/data.md)."""

    @property
    def vocabulary(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def guessed(self) -> float:
        """The share of answers that is right, at most, of whoever does not see what they depend on."""
        ...

    def row(self, rng: Any, split: Any, length: int) -> Any:
        """One sequence of so many tokens, a `testbed.data.batch.Row`, made of nothing but `rng`."""
        ...


def plugged_names(kind: Kind) -> list[str]:
    """Of all installed packages."""
    return sorted(_installed(kind, tuple(sys.path)))


def plugged(kind: Kind, name: str) -> EntryPoint | None:
    """The entry point of that name; None: no package adds it."""
    return _installed(kind, tuple(sys.path)).get(name)


@functools.cache
def _installed(kind: Kind, _path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """By name. Read once for a search path: whoever reads a hundred arms asks a thousand times, 9 ms each."""
    return {entry.name: entry for entry in reversed(entry_points(group=f"testbed.{kind}"))}


def check_known(kind: Kind, name: str, ours: Iterable[str]) -> None:
    """Raise `UsageError` unless it is one of ours or an installed one."""
    known = [*ours, *plugged_names(kind)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"'{name}' is no {kind[:-1]}; known are {', '.join(known)}{hint}")


def plugged_task(name: str, options: Mapping[str, JsonValue]) -> Task:
    """The installed task of that name, with these options; raises `UsageError` for one that it does not have."""
    entry = plugged("tasks", name)
    assert entry is not None, name
    kind = entry.load()
    known = [field.name for field in fields(kind)]
    for option in options:
        if option not in known:
            raise UsageError(f"the task '{name}' has no option '{option}'; it has {', '.join(known) or 'none'}")
    return parse(kind, options, f"options of the task '{name}'")
