"""Documents out of local files: text, JSONL, parquet, a folder of them, or the standard library's sources."""

import hashlib
import json
import platform
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from testbed.config.data import STDLIB
from testbed.data.corpus import standard_library_files
from testbed.errors import UsageError

__all__ = ["Cut", "Documents", "Files"]

Cut = Literal["file", "paragraph"]
_TEXT = {".txt", ".text", ".md", ".py"}
_LINES = {".jsonl", ".ndjson"}
_PARQUET = {".parquet"}
_ROWS = 256


class Documents(Protocol):
    """Where documents come from, in an order that is always the same."""

    described: dict[str, Any]
    """What it is, as JSON; the same whenever the same is asked for."""
    found: dict[str, Any]
    """What was found out while reading, for the record."""

    def read(self, position: dict[str, Any] | None) -> Iterator[str]:
        """Documents from the beginning, or from what `position` once returned."""
        ...

    def position(self) -> dict[str, Any]:
        """As JSON: where the document behind the last one read begins."""
        ...


class Files:
    """A file, the files of a folder in the order of their names, or the standard library."""

    def __init__(self, name: str, *, column: str, cut: Cut) -> None:
        self._column, self._cut = column, cut
        self._lenient = name == STDLIB  # it holds a few files that are not UTF-8 on purpose
        self._root = Path(name)
        self._files = list(standard_library_files()) if self._lenient else _below(self._root)
        self._done = 0
        shown = platform.python_version() if self._lenient else self._root.resolve().name
        self.described: dict[str, Any] = {"name": STDLIB if self._lenient else shown, "files": len(self._files)}
        self.described |= {"column": column, "document": cut}
        self.found: dict[str, Any] = {"bytes": sum(path.stat().st_size for path in self._files)}
        if self._lenient:
            self.found["python"] = shown

    def read(self, position: dict[str, Any] | None) -> Iterator[str]:
        if position is not None and position["fingerprint"] != self._fingerprint():
            raise UsageError(
                "the files have changed since this was begun: delete the .part folder, or take another --out"
            )
        self._done = 0 if position is None else position["documents"]
        for text in islice(self._all(), self._done, None):
            self._done += 1
            yield text

    def position(self) -> dict[str, Any]:
        return {"documents": self._done, "fingerprint": self._fingerprint()}

    def _fingerprint(self) -> str:
        sha = hashlib.sha256()
        for path in self._files:
            status = path.stat()
            sha.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return sha.hexdigest()

    def _all(self) -> Iterator[str]:
        for path in self._files:
            if path.suffix in _LINES:
                yield from _json_lines(path, self._column)
            elif path.suffix in _PARQUET:
                yield from _parquet(path, self._column)
            elif self._cut == "paragraph":
                yield from _paragraphs(path)
            else:
                yield _text(path.read_bytes(), path, lenient=self._lenient)


def _below(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UsageError(f"{root} is neither a file nor a folder")
    known = _TEXT | _LINES | _PARQUET
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix in known)
    if not files:
        raise UsageError(f"{root} holds no text: files that are read end in {', '.join(sorted(known))}")
    return files


def _text(content: bytes, path: Path, *, lenient: bool = False) -> str:
    try:
        return content.decode("utf-8", "replace" if lenient else "strict")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is no UTF-8 text (byte {error.start}): convert it, as with iconv; the name of JSONL ends "
            "in .jsonl, of parquet in .parquet"
        ) from None


def _paragraphs(path: Path) -> Iterator[str]:
    """What stands between empty lines."""
    lines: list[bytes] = []
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                lines.append(line)
            elif lines:
                yield _text(b"".join(lines), path)
                lines = []
    if lines:
        yield _text(b"".join(lines), path)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UsageError(
                    f"{path}, line {number}: no JSON; each line is one object with a field '{column}'"
                ) from None
            where = f"{path}, line {number}"
            if not isinstance(row, dict) or column not in row:
                fields = ", ".join(f"'{name}'" for name in row) if isinstance(row, dict) and row else "none"
                raise UsageError(f"{where}: no field '{column}' (fields: {fields}); --column chooses another")
            yield string(row[column], where, column)


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pa.ArrowInvalid:
        raise UsageError(f"{path} is no parquet file, or a damaged one") from None
    with file:
        if column not in file.schema_arrow.names:
            names = ", ".join(f"'{name}'" for name in file.schema_arrow.names)
            raise UsageError(f"{path} has no column '{column}' (columns: {names}); --column chooses another")
        row = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield string(value, f"{path}, row {row}", column)


def string(value: Any, where: str, column: str) -> str:
    """A text; nothing at all is an empty one."""
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}: '{column}' is no text but {type(value).__name__}; --column chooses another")
    return value or ""
