"""Documents out of local files: text, JSON lines, parquet, a folder of them, or the standard library's sources.

Text and lines may be compressed (.gz, .zst). A folder is read as sets are laid out on the Hugging Face hub: hidden
files are left out, and so is the card (README.md) where there are lines or parquet files.
"""

import gzip
import hashlib
import io
import json
import platform
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

from testbed.config.corpus import Position, SourceFacts
from testbed.config.data import STDLIB
from testbed.data.corpus import standard_library_files
from testbed.data.integrity import file_sha256
from testbed.errors import UsageError

__all__ = ["Cut", "Documents", "Files", "digest_of_files"]

Cut = Literal["file", "paragraph"]
_TEXT = {".txt", ".text", ".md", ".py"}
_LINES = {".jsonl", ".ndjson", ".json"}
_PARQUET = {".parquet"}
_COMPRESSED = {".gz", ".zst"}
_CARD = "readme.md"
_ROWS = 256
_NAMED = 3
"""Of what is left out, by kind."""


class Documents(Protocol):
    """Where documents come from, in an order that is always the same."""

    described: SourceFacts
    """What it is, as JSON; the same whenever the same is asked for."""
    found: SourceFacts
    """What was found out while reading, for the record."""

    def read(self, position: Position | None) -> Iterator[str]:
        """Documents from the beginning, or from what `position` once returned."""
        ...

    def position(self) -> Position:
        """As JSON: where the document behind the last one read begins."""
        ...


class Files:
    """A file, the files of a folder in the order of their names, or the standard library."""

    def __init__(self, name: str, *, column: str, cut: Cut) -> None:
        self._column, self._cut = column, cut
        self._lenient = name == STDLIB  # it holds a few files that are not UTF-8 on purpose
        self._root = Path(name)
        self._files, left_out = (list(standard_library_files()), []) if self._lenient else _below(self._root)
        self._done = 0
        shown = platform.python_version() if self._lenient else self._root.resolve().name
        self.described: SourceFacts = {
            "name": STDLIB if self._lenient else shown,
            "files": len(self._files),
            "column": column,
            "document": cut,
            "sha256": digest_of_files(self._files),
        }
        self.found: SourceFacts = {"bytes": sum(path.stat().st_size for path in self._files)}
        if left_out:
            self.found["left_out"] = left_out
        if self._lenient:
            self.found["python"] = shown

    def read(self, position: Position | None) -> Iterator[str]:
        self._done = 0 if position is None else position.get("documents", 0)
        for text in islice(self._all(), self._done, None):
            self._done += 1
            yield text

    def position(self) -> Position:
        return {"documents": self._done}

    def _all(self) -> Iterator[str]:
        for path in self._files:
            kind = _kind(path)
            if kind in _LINES:
                yield from _json_lines(path, self._column)
            elif kind in _PARQUET:
                yield from _parquet(path, self._column)
            elif self._cut == "paragraph":
                yield from _paragraphs(path)
            else:
                with _opened(path) as file:
                    content = b"".join(_read(file, path))
                yield _text(content, path, lenient=self._lenient)


def digest_of_files(files: list[Path]) -> str:
    """Of what stands in them, in their order, whatever they are called."""
    return hashlib.sha256(b"".join(bytes.fromhex(file_sha256(path)) for path in files)).hexdigest()


def _below(root: Path) -> tuple[list[Path], list[str]]:
    """The files that are read, and what is left out, in words."""
    if root.is_file():
        return [root], []
    if not root.is_dir():
        raise UsageError(f"{root} is neither a file nor a folder")
    known = _TEXT | _LINES | _PARQUET
    found: dict[str, list[Path]] = {"read": [], "hidden": [], "of another kind": [], "card": []}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        found["hidden" if hidden else "read" if _kind(path) in known else "of another kind"].append(path)
    if {_kind(path) for path in found["read"]} & (_LINES | _PARQUET):
        found["card"] = [path for path in found["read"] if path.name.lower() == _CARD]
    files = [path for path in found.pop("read") if path not in found["card"]]
    if not files:
        raise UsageError(
            f"{root} holds no text: files that are read end in {', '.join(sorted(known))}, or in one of them and "
            f"{' or '.join(sorted(_COMPRESSED))}, and their names begin with no dot"
        )
    return files, [_named(root, paths, why) for why, paths in found.items() if paths]


def _named(root: Path, paths: list[Path], why: str) -> str:
    names = ", ".join(f"{path.relative_to(root)}" for path in paths[:_NAMED])
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return f"{names}{more} ({why})"


def _kind(path: Path) -> str:
    """The ending that says what is in it, without that of a compression."""
    endings = [ending.lower() for ending in path.suffixes]
    return next((ending for ending in reversed(endings[-2:]) if ending not in _COMPRESSED), "")


def _opened(path: Path) -> IO[bytes]:
    """To be read, decompressed."""
    ending = path.suffix.lower()
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if ending == ".zst":
        import pyarrow as pa

        return cast(IO[bytes], io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")


def _read(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Line by line; raises `UsageError` where a compressed file is damaged."""
    number = 0
    while True:
        try:
            line = file.readline()
        except (EOFError, OSError, zlib.error) as error:
            raise UsageError(f"{path} is damaged behind line {number} ({error}): get it anew") from None
        if not line:
            return
        number += 1
        yield line


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
    with _opened(path) as file:
        for line in _read(file, path):
            if line.strip():
                lines.append(line)
            elif lines:
                yield _text(b"".join(lines), path)
                lines = []
    if lines:
        yield _text(b"".join(lines), path)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with _opened(path) as file:
        for number, line in enumerate(_read(file, path), start=1):
            if not line.strip():
                continue
            array = "; of one array make lines with jq -c '.[]'" if line.lstrip().startswith(b"[") else ""
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UsageError(
                    f"{path}, line {number}: no JSON; each line is one object with a field '{column}'{array}"
                ) from None
            where = f"{path}, line {number}"
            if not isinstance(row, dict) or column not in row:
                fields = ", ".join(f"'{name}'" for name in row) if isinstance(row, dict) and row else "none"
                raise UsageError(f"{where}: no field '{column}' (fields: {fields}); --column chooses another{array}")
            yield string(row[column], where, column)


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowException, OSError):
        raise UsageError(f"{path} is no parquet file, or a damaged one: get it anew") from None
    with file:
        if column not in file.schema_arrow.names:
            names = ", ".join(f"'{name}'" for name in file.schema_arrow.names)
            raise UsageError(f"{path} has no column '{column}' (columns: {names}); --column chooses another")
        row = 0
        for group in range(file.num_row_groups):
            batches = file.iter_batches(batch_size=_ROWS, columns=[column], row_groups=[group])
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise UsageError(
                        f"{path} is damaged in row group {group + 1} of {file.num_row_groups}, behind row {row} "
                        f"({str(error).splitlines()[0]}): get it anew, or take it out of the folder"
                    ) from None
                if batch is None:
                    break
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield string(value, f"{path}, row {row}", column)


def string(value: Any, where: str, column: str) -> str:
    """A text; nothing at all is an empty one."""
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}: '{column}' is no text but {type(value).__name__}; --column chooses another")
    return value or ""
