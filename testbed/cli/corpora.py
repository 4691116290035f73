"""What `testbed data prepare` and `testbed data show` print."""

import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.config.corpus import CorpusDescription
from testbed.config.data import corpus_folder
from testbed.data.integrity import verify
from testbed.data.prepare import Prepare, prepare

__all__ = ["prepare_corpus", "show_corpus"]


def prepare_corpus(*, as_json: bool, **asked: Any) -> int:
    """Prepare, and print what came of it; 0 when done."""
    with Console(stderr=True).status("looking for the first text …") as status:

        def progress(documents: int, tokens: int) -> None:
            status.update(f"{documents:,} documents, {tokens:,} tokens")

        folder, description = prepare(Prepare(**asked), progress=progress)
    _show(folder, description, as_json=as_json)
    return 0


def show_corpus(name: str, *, as_json: bool) -> int:
    """Verify, and print; 0 when all is as it was written."""
    folder = corpus_folder(name)
    _show(folder, verify(folder), as_json=as_json)
    return 0


def _show(folder: Path, description: CorpusDescription, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"folder": str(folder), **description}, indent=2) + "\n")
        return
    source, tokenizer = description["source"], description["tokenizer"]
    origin = ", ".join(str(source[key]) for key in ("hub", "config", "revision") if source.get(key))
    table = Table(
        title=f"corpus {escape(str(folder))}", box=box.SIMPLE_HEAD, pad_edge=False, caption="every checksum is right"
    )
    for name in ("split", "documents", "tokens", "bytes"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, counts in description["splits"].items():
        size = description["files"][f"{split}.bin"]["bytes"]
        table.add_row(split, f"{counts['documents']:,}", f"{counts['tokens']:,}", f"{size:,}")
    console = Console()
    console.print(table)
    for left_out in source.get("left_out", ()):
        console.print(f"left out: {escape(left_out)}", soft_wrap=True)
    console.print(f"from {escape(str(source['name']))}{escape(f' ({origin})') if origin else ''}")
    console.print(f"tokenizer {escape(tokenizer['name'])}, {tokenizer['vocabulary']:,} token ids")
    console.print(f"sha256 {description['sha256']}")
    console.print(f'to train on it: [data] corpus = "{folder}"', markup=False, soft_wrap=True)
