"""A corpus while it is written: `NAME.part`, which becomes `NAME` by one rename when it is whole.

Tokens and document starts are appended; now and then everything is flushed and the journal, which says how much of
each file counts and where to read on, is replaced by rename. Whatever kills the process, the next one cuts the files
back to the journal and goes on: the result is the same to the last bit.
"""

import fcntl
import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TypedDict

import numpy as np

from testbed.config.corpus import CorpusAsked, CorpusDescription, FileFacts, Position, SourceFacts, TokenizerFacts
from testbed.config.data import DATA_VERSION, DESCRIPTION, read_description, unfinished
from testbed.data.integrity import file_sha256
from testbed.data.prepared import TOKEN
from testbed.data.tokens import TOKENIZER_FILE, Tokenizer
from testbed.errors import UsageError

__all__ = ["SPLITS", "Shelf", "differing"]

SPLITS = ("train", "validation")
_JOURNAL = "journal.json"
_START = np.dtype("<u8")


class _Journal(TypedDict):
    """How far the last commit had come."""

    schema_version: int
    asked: CorpusAsked
    position: Position | None
    tokens: dict[str, int]
    """By split."""
    documents: dict[str, int]


class Shelf:
    """The folder of a corpus under way; use it in a `with`. Nothing is on disk before `begin`."""

    def __init__(self, folder: Path, asked: CorpusAsked) -> None:
        self.folder, self.part = folder, unfinished(folder)
        self._asked = asked
        self._lock: int | None = None
        self._made: list[Path] = []
        self._files: dict[str, IO[bytes]] = {}
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.documents = dict.fromkeys(SPLITS, 0)
        self.position: Position | None = None
        """Where to read on; None: at the beginning."""
        self.begun = False

    @property
    def total(self) -> int:
        """Tokens so far."""
        return sum(self.tokens.values())

    def __enter__(self) -> "Shelf":
        if self.part.is_dir():
            self._take()
            try:
                self._resume()
            except UsageError:
                self._leave()
                raise
        elif self.part.exists():
            raise UsageError(f"{self.part} is in the way: move it, or type another --out")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        if isinstance(error, UsageError) and self._made:
            shutil.rmtree(self.part, ignore_errors=True)
            with suppress(OSError):  # somebody else may have put something there meanwhile
                for folder in self._made[1:]:
                    folder.rmdir()
        self._leave()

    def begin(self, tokenizer: Tokenizer) -> None:
        """Make the folder, unless it is there from an earlier time."""
        if not self.begun:
            self._make()
            tokenizer.save(self.part)
            self.begun = True
            self._write_journal()
        for split in SPLITS:
            for name, size in (
                (f"{split}.bin", self.tokens[split] * TOKEN.itemsize),
                (f"{split}.starts", self.documents[split] * _START.itemsize),
            ):
                self._files[name] = (self.part / name).open("ab")
                _cut_back(self._files[name], size)

    def add(self, split: str, tokens: np.ndarray, separator: int) -> None:
        """One document."""
        self._files[f"{split}.starts"].write(np.array(self.tokens[split], dtype=_START).tobytes())
        self._files[f"{split}.bin"].write(np.append(tokens, separator).astype(TOKEN).tobytes())
        self.tokens[split] += len(tokens) + 1
        self.documents[split] += 1

    def commit(self, position: Position) -> None:
        """What has been added so far counts, whatever happens."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.position = position
        self._write_journal()

    def finish(self, source: SourceFacts, tokenizer: TokenizerFacts) -> CorpusDescription:
        """Write `data.json` and give the folder its name."""
        for file in self._files.values():
            file.close()
        names = [f"{split}.{kind}" for split in SPLITS for kind in ("bin", "starts.npy")]
        for split in SPLITS:
            starts = np.fromfile(self.part / f"{split}.starts", dtype=_START)
            np.save(self.part / f"{split}.starts.npy", starts, allow_pickle=False)
        if (self.part / TOKENIZER_FILE).is_file():
            names.append(TOKENIZER_FILE)
        files = {name: self._described(name) for name in names}
        digests = b"".join(bytes.fromhex(files[f"{split}.bin"]["sha256"]) for split in SPLITS)
        whole: CorpusDescription = {
            "schema_version": DATA_VERSION,
            "finished": True,
            "asked": self._asked,
            "source": source,
            "tokenizer": tokenizer,
            "splits": {s: {"tokens": self.tokens[s], "documents": self.documents[s]} for s in SPLITS},
            "sha256": _sha256(digests),
            "files": files,
        }
        _write_json(self.part / DESCRIPTION, whole)
        self._name()
        return whole

    def _name(self) -> None:
        """Take away what is of no use any more; then the one rename."""
        self._made = []  # whole: whatever happens now, it stays
        for name in (*(f"{split}.starts" for split in SPLITS), _JOURNAL):
            (self.part / name).unlink(missing_ok=True)
        try:
            self.part.rename(self.folder)
        except OSError as error:
            raise UsageError(
                f"{self.part} is whole, but cannot be renamed to {self.folder}: {error.strerror}"
            ) from None

    def _make(self) -> None:
        missing = [folder for folder in (self.part, *self.part.parents) if not folder.exists()]
        try:
            self.part.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"{self.part} cannot be made ({error.strerror}): type another --out") from None
        self._made = missing
        self._take()

    def _take(self) -> None:
        """No two processes write here; the lock ends with the process."""
        self._lock = os.open(self.part, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another 'testbed data prepare' is filling {self.part}: wait for it, or type another --out"
            ) from None

    def _leave(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _resume(self) -> None:
        journal, names = self.part / _JOURNAL, {path.name for path in self.part.iterdir()}
        if (self.part / DESCRIPTION).is_file():  # killed while it got its name
            found = read_description(self.part)
            self._check_asked(found["schema_version"], found["asked"])
            self._name()
            return
        if not journal.is_file():
            if names - {TOKENIZER_FILE, TOKENIZER_FILE + ".tmp", _JOURNAL + ".tmp"}:
                raise UsageError(f"{self.part} is in the way, and not ours: move it, or type another --out")
            shutil.rmtree(self.part)  # killed before anything counted
            self._leave()
            return
        try:
            found = json.loads(journal.read_text(encoding="utf-8"))
            self._check_asked(found["schema_version"], found.get("asked"))
            self.position, self.tokens, self.documents = (found[key] for key in ("position", "tokens", "documents"))
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
            raise UsageError(f"{journal} is damaged: delete {self.part}, and begin again") from None
        self.begun = True
        for split in SPLITS:
            for name, least in (
                (f"{split}.bin", 2 * self.tokens[split]),
                (f"{split}.starts", 8 * self.documents[split]),
            ):
                path = self.part / name
                if least and (not path.is_file() or path.stat().st_size < least):
                    raise UsageError(f"{path} is shorter than its journal says: delete {self.part}, and begin again")

    def _check_asked(self, version: int, begun: CorpusAsked) -> None:
        """Whether what lies there was begun by the same request."""
        ours = version == DATA_VERSION
        if not ours or begun != self._asked:
            other = differing(self._asked, begun) if ours else "testbed"
            raise UsageError(
                f"{self.part} was begun with another {other}: type what began it to go on, "
                "delete it, or type another --out"
            )

    def _write_journal(self) -> None:
        _write_json(
            self.part / _JOURNAL,
            {
                "schema_version": DATA_VERSION,
                "asked": self._asked,
                "position": self.position,
                "tokens": self.tokens,
                "documents": self.documents,
            },
        )

    def _described(self, name: str) -> FileFacts:
        path = self.part / name
        return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def differing(asked: CorpusAsked, found: CorpusAsked) -> str:
    """In what two requests differ, in words: a file of the same name by its content."""
    words = {"sha256": "content", "tokenizer_sha256": "content of the tokenizer", "name": "source"}
    flat = [{**each, **each.get("source", {})} for each in (asked, found)]
    keys = [key for key in flat[0] if key != "source" and flat[0][key] != flat[1].get(key)]
    return ", ".join(words.get(key, key) for key in keys)


def _cut_back(file: IO[bytes], size: int) -> None:
    """Drop what was written after the last commit."""
    file.truncate(size)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_json(path: Path, value: CorpusDescription | _Journal) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
