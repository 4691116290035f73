"""From documents to a corpus on disk: testbed data prepare fineweb --tokens 100M

Documents are tokenised once, in their order, and go to one of two flat files: one in ten is held out for validation,
chosen by the hash of its text, so that equal documents never stand on both sides. It can be killed at any time and
goes on where it was (shelf.py).
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from testbed.config.corpus import CorpusAsked, CorpusDescription, SourceFacts, TokenizerFacts
from testbed.config.data import CORPORA, DESCRIPTION, STDLIB, read_description
from testbed.config.tree import load_toml, names_in
from testbed.data.corpus_writer import Shelf, differing
from testbed.data.files import Cut, Documents, Files
from testbed.data.hub import Hub, HubSet
from testbed.data.integrity import verify
from testbed.data.tokens import (
    BPE,
    Tokenizer,
    check_vocabulary_size,
    load_tokenizer,
    read_trained,
    tokenizer_sha256,
    train_bpe,
)
from testbed.errors import UsageError

__all__ = ["Prepare", "held_out", "parse_count", "prepare"]

_SETS = "data"  # the folder in experiments/
_HELD_OUT_ONE_IN = 10
_COMMIT_TOKENS = 4_000_000
_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 256
_SAMPLE_CHARACTERS = 16 << 20
_DEFAULT_BPE = 4096
_TIMES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}

Progress = Callable[[int, int], None]
"""Called with documents and tokens so far."""


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """What is to be prepared, as given."""

    name: str
    """A set of experiments/data, stdlib, a .toml like those, or a path of texts."""
    tokens: str = "100M"
    """At least so many, or all there are."""
    tokenizer: str | None = None
    """None: what the set's file says; bytes for local texts."""
    vocabulary: int | None = None
    """Token ids of a BPE that is trained."""
    out: str | None = None
    column: str | None = None
    """None: what the set's file says; text."""
    document: Cut = "file"
    """What a document of a text file is."""


def prepare(
    request: Prepare, *, progress: Progress = lambda *_: None, commit_tokens: int = _COMMIT_TOKENS
) -> tuple[Path, CorpusDescription]:
    """The finished folder and its description. If it is there already and is what is asked for, nothing is done."""
    wanted = parse_count(request.tokens)
    documents, default = _documents(request)
    tokenizer_name = request.tokenizer or default
    asked: CorpusAsked = {
        "source": documents.described,
        "tokens": wanted,
        "tokenizer": tokenizer_name,
        "tokenizer_sha256": tokenizer_sha256(tokenizer_name),
        "vocabulary": _bpe_size(tokenizer_name, request.vocabulary),
    }
    folder = CORPORA / _folder_name(request.name, tokenizer_name) if request.out is None else Path(request.out)
    if folder.name in ("", ".."):
        raise UsageError(f"--out '{request.out}': type the name of a folder to make")
    if _is_there(folder, asked):
        return folder, verify(folder)
    with Shelf(folder, asked) as shelf:
        if folder.is_dir() and (folder / DESCRIPTION).is_file():  # it only wanted its name
            return folder, verify(folder)
        tokenizer = _tokenizer(tokenizer_name, asked["vocabulary"], documents, shelf)
        _fill(shelf, documents, tokenizer, wanted, progress, commit_tokens)
        source: SourceFacts = {**documents.described, **documents.found}
        about: TokenizerFacts = {
            "name": tokenizer.name,
            "vocabulary": tokenizer.vocabulary,
            "separator": tokenizer.separator,
        }
        return folder, shelf.finish(source, about)


def parse_count(text: str) -> int:
    """100M, 1.5B, 20k or 123456."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbg]?)", text.strip().lower())
    count = round(float(match[1]) * _TIMES[match[2]]) if match else 0
    if count < 1:
        raise UsageError(
            f"--tokens '{text}': type how many there are to be, at least 1, as in 250000, 20k, 100M or 1.5B"
        )
    return count


def held_out(text: str) -> bool:
    """Whether a document is for validation."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _HELD_OUT_ONE_IN == 0


def _fill(
    shelf: Shelf,
    documents: Documents,
    tokenizer: Tokenizer,
    wanted: int,
    progress: Progress,
    commit_tokens: int,
) -> None:
    """Until there are tokens enough, or no more documents."""
    committed = shelf.total
    if shelf.total < wanted:
        texts = documents.read(shelf.position)
        first = next(texts, None)  # before anything is on disk: it may not be there at all
        shelf.begin(tokenizer)
        for batch in _batches(chain([] if first is None else [first], texts)):
            for text, tokens in zip(batch, tokenizer.encode(batch), strict=True):
                if shelf.total < wanted:
                    shelf.add("validation" if held_out(text) else "train", tokens, tokenizer.separator)
            progress(sum(shelf.documents.values()), shelf.total)
            if shelf.total >= wanted:
                break
            if shelf.total - committed >= commit_tokens:
                shelf.commit(documents.position())
                committed = shelf.total
        shelf.commit(documents.position())
    else:
        shelf.begin(tokenizer)
    _check_both(shelf)


def _check_both(shelf: Shelf) -> None:
    count = sum(shelf.documents.values())
    if not count:
        raise UsageError("there is no text in it: every document is blank, or there is none")
    for split, documents in shelf.documents.items():
        if not documents:
            what = "held out" if split == "validation" else "trained on"
            raise UsageError(
                f"of {count} {'document' if count == 1 else 'documents'} none is {what}, for one in ten is held out by "
                "the hash of its text: give more documents; --document paragraph cuts text files at empty lines"
            )


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Documents that are not blank, some at a time; a mark of the byte order is no text."""
    batch, characters = [], 0
    for text in texts:
        text = text.removeprefix("\ufeff")
        if not text.strip():
            continue
        batch.append(text.encode("utf-8", "replace").decode())  # JSON can hold halves of characters
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _tokenizer(name: str, size: int | None, documents: Documents, shelf: Shelf) -> Tokenizer:
    if name != BPE:
        return load_tokenizer(name)
    if shelf.begun:
        return read_trained(shelf.part)
    assert size is not None
    return train_bpe(_sample(documents), size)


def _sample(documents: Documents) -> Iterator[str]:
    """The first documents that are not held out."""
    characters = 0
    for batch in _batches(documents.read(None)):
        for text in batch:
            if not held_out(text):
                characters += len(text)
                yield text
        if characters >= _SAMPLE_CHARACTERS:
            return


def _documents(request: Prepare) -> tuple[Documents, str]:
    """Where they come from, and the tokenizer unless another is asked for."""
    name = request.name
    if name in names_in(_SETS) or (name.endswith(".toml") and Path(name).is_file()):
        chosen = load_toml(HubSet, _SETS, name)
        return Hub(chosen, name=Path(name).stem, column=request.column), chosen.tokenizer
    if name == STDLIB or Path(name).exists():
        return Files(name, column=request.column or "text", cut=request.document), "bytes"
    known = [*names_in(_SETS), STDLIB]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UsageError(
        f"'{name}' is neither a corpus nor a file or folder that is there; known are {', '.join(known)}, or the path "
        f"of texts (.txt, .md, .py, .jsonl, .parquet …), a folder of them, or a .toml as in experiments/data{hint}"
    )


def _bpe_size(tokenizer: str, size: int | None) -> int | None:
    if tokenizer != BPE:
        if size is not None:
            raise UsageError(f"--vocabulary {size} is for --tokenizer bpe only; '{tokenizer}' has its own")
        return None
    size = _DEFAULT_BPE if size is None else size
    check_vocabulary_size(size)
    return size


def _folder_name(name: str, tokenizer: str) -> str:
    return f"{Path(name).resolve().stem if Path(name).exists() else Path(name).stem}-{Path(tokenizer).stem}"


def _is_there(folder: Path, asked: CorpusAsked) -> bool:
    """Whether exactly this has been prepared already; anything else that lies there is left alone and refused."""
    if not folder.exists() and not folder.is_symlink():
        return False
    if folder.is_dir() and not any(folder.iterdir()):
        return False
    if not folder.is_dir() or not (folder / DESCRIPTION).is_file():
        raise UsageError(f"{folder} is there already, and no prepared corpus: type another --out")
    found = read_description(folder)["asked"]
    if found != asked:
        raise UsageError(
            f"{folder} holds a corpus with another {differing(asked, found)}: delete it to prepare it anew, or type "
            "another --out"
        )
    return True
