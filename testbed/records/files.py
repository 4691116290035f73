"""Records on disk: written by rename, so that a file that is there is whole; read strictly, or refused."""

import errno
import json
import os
import stat
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from testbed.errors import UsageError

__all__ = ["SCHEMA_VERSION", "plain", "read_json", "read_record", "received", "record_from", "write_json"]

SCHEMA_VERSION = 1
"""Of every record, unless its class has a SCHEMA_VERSION of its own."""
_LARGEST_RECORD = 256 << 20
_AGAIN = "run it again, or read it with the version that wrote it (environment.json names the commit)"

T = TypeVar("T")


def plain(record: Any) -> Any:
    """What JSON can hold of a record: a dataclass as a dict, with its schema version."""
    if is_dataclass(record) and not isinstance(record, type):
        return {"schema_version": _version(type(record)), **asdict(record)}
    return record


def write_json(path: Path, data: Any) -> None:
    """Write a record, or anything that JSON can hold, by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    data = plain(data)
    if isinstance(data, dict):
        data = {"schema_version": SCHEMA_VERSION, **data}
    partial.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises `UsageError` for what is none, too large, or no regular file."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_RECORD:
            raise UsageError(
                f"{path} is no record of ours: a regular file of at most {_LARGEST_RECORD >> 20} MiB is one"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UsageError(f"{path} is no record of ours: a link that leads to itself") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} is not valid JSON ({said}): the run did not end as it should") from None


def read_record(kind: type[T], path: Path) -> T:
    """The record of this kind in a file; raises `UsageError` that names the file, the key and what to do."""
    return record_from(kind, read_json(path), path)


def record_from(kind: type[T], data: Any, origin: Path | str) -> T:
    """`data` as a record of this kind, every key known and none missing; raises `UsageError` that names `origin`."""
    if not isinstance(data, dict):
        raise UsageError(f"{origin} is no record of ours: a table of keys and values is one")
    fields = dict(data)
    if (found := fields.pop("schema_version", None)) != (reads := _version(kind)):
        raise UsageError(f"{origin} has schema version {found}, and this testbed reads version {reads} only")
    return _strict(kind, fields, f"{origin} is no record of this version of the testbed", _AGAIN)


def received(kind: type[T], message: object, sender: str) -> T:
    """A record as another process of ours has sent it; raises `UsageError` where it is none."""
    return _strict(kind, message, f"what {sender} sent is no {kind.__name__}", "its sources are not this checkout's")


def _strict(kind: type[T], fields: object, what_it_is: str, remedy: str) -> T:
    try:
        return _adapter(kind).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = {
            "unexpected_keyword_argument": f"unknown key '{where}'",
            "extra_forbidden": f"unknown key '{where}'",
            "missing": f"no key '{where}'",
        }.get(first["type"], f"{where}: {first['msg']}")
        raise UsageError(f"{what_it_is} ({what}): {remedy}") from None
    except RecursionError:
        raise UsageError(f"{what_it_is} (its tables or lists lie too deep in one another): {remedy}") from None


def _version(kind: type) -> int:
    return getattr(kind, "SCHEMA_VERSION", SCHEMA_VERSION)


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)
