"""A corpus that `testbed data prepare` has written: verified to the last byte, then read where it lies.

data.json                              what it is, with the size and the SHA-256 of every other file
train.bin, validation.bin              token ids, flat, little-endian uint16
train.starts.npy, validation.starts.npy    where each document begins, uint64
tokenizer.json                         unless the tokens are bytes
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from testbed.config.data import read_description
from testbed.data.corpus import Corpus
from testbed.errors import UsageError

__all__ = ["TOKEN", "open_prepared", "verify"]

TOKEN = np.dtype("<u2")


def verify(folder: Path) -> dict[str, Any]:
    """Its description, when every file is there, as long and with the checksum that it says."""
    description = read_description(folder)
    again = "delete the folder and prepare it again"
    for name, expected in sorted(description["files"].items()):
        path = folder / name
        if path.name != name or not path.is_file():
            raise UsageError(f"{path} is missing, though {folder} names it: {again}")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UsageError(f"{path} has {size} bytes where {expected['bytes']} were written: {again}")
        if file_sha256(path) != expected["sha256"]:
            raise UsageError(f"{path} has the wrong checksum, so it is not what was prepared: {again}")
    return description


def open_prepared(folder: Path) -> Corpus:
    """The corpus in this folder, mapped into memory and not read into it."""
    description = verify(folder)
    tokens, starts = {}, {}
    for split in ("train", "validation"):
        try:
            tokens[split] = np.memmap(folder / f"{split}.bin", dtype=TOKEN, mode="r")
            starts[split] = np.load(folder / f"{split}.starts.npy", mmap_mode="r", allow_pickle=False)
        except ValueError as error:  # checksums are right, so somebody made it so
            raise UsageError(f"{folder}: {split} is not what 'testbed data prepare' writes: {error}") from None
    return Corpus(
        train=tokens["train"],
        validation=tokens["validation"],
        train_starts=starts["train"],
        validation_starts=starts["validation"],
        sha256=description["sha256"],
        vocabulary=description["tokenizer"]["vocabulary"],
    )


def file_sha256(path: Path) -> str:
    """Of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
