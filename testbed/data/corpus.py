"""Text as bytes: by default the Python standard library's own sources, which every machine has.

One file in ten is held out, chosen by the hash of its content, so that the split depends neither on the
order of the files nor on where they lie.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Corpus", "standard_library"]

_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Byte streams for training and validation."""

    train: np.ndarray
    """(bytes,) uint8."""
    validation: np.ndarray
    """(bytes,) uint8, of files that `train` holds no byte of."""
    sha256: str
    """Of both streams, so that two runs can be shown to have read the same text."""


def standard_library(root: Path | None = None) -> Corpus:
    """The `*.py` files below `root` (default: the interpreter's standard library, without site-packages)."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    streams: dict[bool, list[bytes]] = {False: [], True: []}
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "dist-packages" in path.parts:
            continue
        content = path.read_bytes()
        held_out = hashlib.sha256(content).digest()[0] % _HELD_OUT_ONE_IN == 0
        streams[held_out].append(content)
    train, validation = b"\n".join(streams[False]), b"\n".join(streams[True])
    if not train or not validation:
        raise ValueError(f"{root} holds too few .py files to train on and to hold out")
    return Corpus(
        train=np.frombuffer(train, dtype=np.uint8),
        validation=np.frombuffer(validation, dtype=np.uint8),
        sha256=hashlib.sha256(hashlib.sha256(train).digest() + hashlib.sha256(validation).digest()).hexdigest(),
    )
