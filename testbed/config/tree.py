"""What every part of the tree shares: strict reading of TOML, one clear sentence for what is wrong, JSON out."""

import difflib
import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from testbed.errors import UsageError

__all__ = [
    "STRICT",
    "at_least",
    "is_file",
    "load_toml",
    "merged",
    "names_in",
    "parse",
    "plain_json",
    "read_toml",
    "table_of",
    "to_json",
]

SCHEMA_VERSION = 1
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

_LARGEST_TOML = 4 << 20

STRICT = ConfigDict(extra="forbid")
"""Of every dataclass of the tree: unknown keys are refused."""

T = TypeVar("T")


def at_least(least: float, **values: float) -> None:
    """Raise `UsageError` unless every value is a finite number of at least `least`, and a whole one below 2 ** 63."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            finite = "" if isfinite(value) else " and finite"
            raise UsageError(f"{name} = {value}: it must be at least {least:g}{finite}")
        if isinstance(value, int) and value >= 1 << 63:
            raise UsageError(f"{name} is a number of {value.bit_length()} bits: it must be below 2 ** 63")


def parse(kind: type[T], data: object, origin: str) -> T:
    """`data` as a `kind`; raises `UsageError` that names the first wrong key and, if unknown, the nearest known one."""
    try:
        return _validator(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":
            raise UsageError(f"{origin}: {where + ': ' if where else ''}{first['ctx']['error']}") from None
        if first["type"] == "invalid-json-value":
            value = first["input"]
            said = f"{value} is a {type(value).__name__}, which is no value here: put it in quotes"
            raise UsageError(f"{origin}: {first['loc'][0]}: {said}") from None
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise UsageError(f"{origin}: unknown key '{where}'{_nearest(kind, first['loc'])}") from None
        raise UsageError(f"{origin}: {where}: {first['msg']} (given: {_shown(first['input'])})") from None
    except RecursionError:
        raise UsageError(f"{origin}: its tables or lists lie too deep in one another") from None


@functools.cache
def _validator(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    except RecursionError:
        return f"a {type(value).__name__}, deep in itself"


def is_file(path: Path) -> bool:
    """Whether there is one; also of a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _nearest(kind: type, loc: tuple[int | str, ...]) -> str:
    fields = getattr(kind, "__dataclass_fields__", {})
    for part in loc[:-1]:
        found = fields.get(str(part))
        fields = getattr(found.type, "__dataclass_fields__", {}) if found is not None else {}
    close = difflib.get_close_matches(str(loc[-1]), list(fields), n=1, cutoff=0)
    return f"; did you mean '{close[0]}'?" if close else ""


def names_in(folder: str) -> list[str]:
    """Names of the TOML files in `experiments/<folder>`."""
    return sorted(path.stem for path in (EXPERIMENTS / folder).glob("*.toml"))


def load_toml(kind: type[T], folder: str, name: str) -> T:
    """The `kind` called `name` in `experiments/<folder>`, or the one in the TOML file `name`."""
    path = Path(name) if name.endswith(".toml") else EXPERIMENTS / folder / f"{name}.toml"
    if not is_file(path):
        known = names_in(folder)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UsageError(
            f"'{name}' is no {folder[:-1]}; known are {', '.join(known)}, or the path of a .toml file{hint}"
        )
    return read_toml(kind, path)


def read_toml(kind: type[T], path: Path) -> T:
    """The `kind` in a TOML file; raises `UsageError` with one sentence."""
    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):
            raise UsageError(f"{path} is no regular file: name a .toml file")
        if found.st_size > _LARGEST_TOML:
            raise UsageError(f"{path} has {found.st_size:,} bytes, and a .toml file can have {_LARGEST_TOML:,}")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of text that is no UTF-8, and of numbers of thousands of digits
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: its tables or lists lie too deep in one another") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    return parse(kind, data, str(path.name))


def merged(base: Mapping[str, JsonValue], changes: object) -> dict[str, JsonValue]:
    """`base` with `changes`, table by table; raises `UsageError` where these are no table."""
    if not isinstance(changes, dict):
        raise UsageError(f"a table is needed where {changes!r} was given")
    found = {**base, **changes}
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(inner := base.get(key), dict):
            found[key] = merged(inner, value)
    return found


def plain_json(value: object) -> JsonValue:
    """What becomes of a value by way of JSON: lists for tuples, texts for keys."""
    return json.loads(json.dumps(value))


def table_of(record: Any) -> dict[str, JsonValue]:
    """A dataclass as a table of JSON."""
    return json.loads(json.dumps(asdict(record)))


def to_json(value: Any) -> str:
    """A configuration as JSON, with its schema version."""
    data = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return json.dumps({"schema_version": SCHEMA_VERSION, **data}, indent=2)
