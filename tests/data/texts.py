"""Small corpora on disk, and what a prepared one holds."""

import json
from pathlib import Path

import numpy as np

from testbed.data.batch import Split
from testbed.data.prepared import open_prepared
from testbed.data.tokens import Bytes, Tokenizer

TEXTS = [f"document {number}: " + "the quick brown fox, été, 狐 " * (number % 7) + "end" for number in range(120)]


def json_lines(path: Path, texts: list[str] | None = None, *, column: str = "text") -> str:
    """A JSONL of these texts; its path."""
    rows = [json.dumps({column: text, "number": at}) for at, text in enumerate(TEXTS if texts is None else texts)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def parquet(path: Path, texts: list[str] | None = None, *, column: str = "text") -> str:
    """The same as parquet."""
    import pyarrow as pa
    from pyarrow import parquet as files

    files.write_table(pa.table({column: TEXTS if texts is None else texts}), path, row_group_size=17)
    return str(path)


def documents(folder: Path, tokenizer: Tokenizer | None = None) -> dict[Split, list[str]]:
    """The texts of both splits, read back from tokens and starts; every document must end in the separator."""
    tokenizer = tokenizer or Bytes()
    found: dict[Split, list[str]] = {}
    for split, stream in open_prepared(folder).streams().items():
        ends = [*np.asarray(stream.starts[1:], dtype=np.int64), len(stream.tokens)]
        pieces = [stream.tokens[int(start) : int(end)] for start, end in zip(stream.starts, ends, strict=True)]
        assert all(piece[-1] == tokenizer.separator for piece in pieces)
        found[split] = [tokenizer.decode(piece[:-1]) for piece in pieces]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
