"""Text as bytes: by default the Python standard library's own sources, which every machine has.

One file in ten is held out, chosen by the hash of its content, so that the split depends neither on the
order of the files nor on where they lie.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from testbed.config.data import standard_library_folder
from testbed.data.batch import Split, Stream, digest_of

__all__ = ["Corpus", "standard_library", "standard_library_files"]

_HELD_OUT_ONE_IN = 10
_INSTALLED = {"site-packages", "dist-packages"}
"""Folders that are not looked into: they may hold ten times as many files."""


def _one_document() -> np.ndarray:
    return np.zeros(1, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token streams for training and validation."""

    train: np.ndarray
    """(tokens,) uint8 or uint16."""
    validation: np.ndarray
    """(tokens,), of documents that `train` holds no token of."""
    sha256: str
    """Of both streams, so that two runs can be shown to have read the same text."""
    train_starts: np.ndarray = field(default_factory=_one_document)
    """(documents,) where each begins."""
    validation_starts: np.ndarray = field(default_factory=_one_document)
    vocabulary: int = 256

    def streams(self) -> dict[Split, Stream]:
        """Both splits."""
        return {
            "train": Stream(tokens=self.train, starts=self.train_starts),
            "validation": Stream(tokens=self.validation, starts=self.validation_starts),
        }


def standard_library_files(root: Path | None = None) -> Iterator[Path]:
    """The `*.py` files below `root` (default: `standard_library_folder`), without links and what pip installs there."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root or standard_library_folder()):
        folders[:] = [name for name in folders if name not in _INSTALLED]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    for path in sorted(found):
        if not path.is_symlink():
            yield path


def standard_library(root: Path | None = None) -> Corpus:
    """Those files, each a document, with a newline between two."""
    splits: dict[bool, list[bytes]] = {False: [], True: []}
    for path in standard_library_files(root):
        content = path.read_bytes()
        held_out = hashlib.sha256(content).digest()[0] % _HELD_OUT_ONE_IN == 0
        splits[held_out].append(content)
    train, validation = b"\n".join(splits[False]), b"\n".join(splits[True])
    if not train or not validation:
        raise ValueError(f"{root} holds too few .py files to train on and to hold out")
    return Corpus(
        train=np.frombuffer(train, dtype=np.uint8),
        validation=np.frombuffer(validation, dtype=np.uint8),
        train_starts=_starts(splits[False]),
        validation_starts=_starts(splits[True]),
        sha256=digest_of(train, validation),
    )


def _starts(documents: list[bytes]) -> np.ndarray:
    """Where each begins; the newline behind it is its own."""
    return np.cumsum([0, *(len(document) + 1 for document in documents[:-1])], dtype=np.uint64)
