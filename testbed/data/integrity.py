"""Whether a prepared corpus is, to the last byte, what was written; asked before a run begins, so without numpy."""

import functools
import hashlib
from pathlib import Path

from testbed.config.corpus import CorpusDescription
from testbed.config.data import (
    STDLIB,
    TASKS,
    Data,
    check_vocabulary,
    corpus_folder,
    read_description,
    vocabulary_needed,
)
from testbed.config.model import Model
from testbed.errors import UsageError

__all__ = ["check_data", "file_sha256", "verify"]


def check_data(data: Data, model: Model) -> None:
    """Raise `UsageError` unless the corpus is there, whole and unharmed, and the model has all its token ids.

    A task that a package adds is asked by `testbed.data.plugged.check_plugged`, for that runs the package's code.
    """
    if data.task in TASKS:
        check_vocabulary(data, model, vocabulary_needed(data))
    if data.reads_text and data.corpus != STDLIB:
        verify(corpus_folder(data.corpus))


def verify(folder: Path) -> CorpusDescription:
    """Its description, when every file is there, as long and with the checksum that it says.

    A process reads a file for its checksum once, and again only if it has been written to since.
    """
    description = read_description(folder)
    again = "delete the folder and prepare it again"
    for name, expected in sorted(description["files"].items()):
        path = folder / name
        if path.name != name or not path.is_file():
            raise UsageError(f"{path} is missing, though {folder} names it: {again}")
        found = path.stat()
        if found.st_size != expected["bytes"]:
            raise UsageError(f"{path} has {found.st_size} bytes where {expected['bytes']} were written: {again}")
        if _sha256_while(path.resolve(), found.st_ino, found.st_mtime_ns, found.st_ctime_ns) != expected["sha256"]:
            raise UsageError(f"{path} has the wrong checksum, so it is not what was prepared: {again}")
    return description


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _sha256_while(path: Path, *_: int) -> str:
    """The same, for as long as the file stays what its number and times say."""
    return file_sha256(path)
