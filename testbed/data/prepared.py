"""A corpus that `testbed data prepare` has written: verified to the last byte, then read where it lies.

data.json                              what it is, with the size and the SHA-256 of every other file
train.bin, validation.bin              token ids, flat, little-endian uint16
train.starts.npy, validation.starts.npy    where each document begins, uint64
tokenizer.json                         unless the tokens are bytes
"""

from pathlib import Path

import numpy as np

from testbed.data.corpus import Corpus
from testbed.data.integrity import verify
from testbed.errors import UsageError

__all__ = ["TOKEN", "open_prepared"]

TOKEN = np.dtype("<u2")


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
