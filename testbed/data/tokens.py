"""From text to token ids: bytes, GPT-2's vocabulary, a small BPE trained on the corpus itself, or a file of one's own.

Behind every document stands a separator: a newline for bytes, else the vocabulary's own end of text.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from testbed.config.data import BYTES, MAX_VOCABULARY
from testbed.data.extra import require
from testbed.data.files import digest_of_files
from testbed.data.hub import reaching
from testbed.errors import UsageError

__all__ = [
    "BPE",
    "TOKENIZER_FILE",
    "Bytes",
    "Tokenizer",
    "Vocabulary",
    "load_tokenizer",
    "tokenizer_sha256",
    "train_bpe",
]

TOKENIZER_FILE = "tokenizer.json"
BPE = "bpe"
GPT2_VOCABULARY = 50257
GPT2_HELLO_WORLD = [15496, 995]
_GPT2_HUB = "openai-community/gpt2"
_END_OF_TEXT = "<|endoftext|>"
_ENDS = (_END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
_SMALLEST_BPE = BYTES + 1


class Tokenizer(Protocol):
    """Text to ids and back."""

    name: str
    vocabulary: int
    """Ids are below it."""
    separator: int

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, without a separator."""
        ...

    def decode(self, tokens: np.ndarray) -> str: ...

    def save(self, folder: Path) -> None:
        """What is needed to decode again, if anything."""
        ...


class Bytes:
    """UTF-8, byte by byte."""

    name, vocabulary, separator = "bytes", BYTES, ord("\n")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, tokens: np.ndarray) -> str:
        return bytes(tokens.astype(np.uint8)).decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        pass


class Vocabulary:
    """A tokenizer of the package `tokenizers`."""

    def __init__(self, tokenizer: Any, origin: str, name: str | None = None) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "<|endoftext|>" written in a text is text, not the end of it
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.vocabulary = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if self.vocabulary > MAX_VOCABULARY:
            raise UsageError(
                f"{origin} has {self.vocabulary} token ids; there can be {MAX_VOCABULARY}, for they are kept in 16 "
                "bits: type --tokenizer gpt2, bpe or bytes"
            )
        ends = [end for end in map(tokenizer.token_to_id, _ENDS) if end is not None]
        if not ends:
            raise UsageError(f"{origin} has no token that ends a text; one of {', '.join(_ENDS)} must be there")
        self.separator = ends[0]
        is_gpt2 = self.vocabulary == GPT2_VOCABULARY and self._ids("Hello world") == GPT2_HELLO_WORLD
        self.name = name or ("gpt2" if is_gpt2 else "file")

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(each.ids, dtype=np.uint16) for each in encoded]

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        temporary = folder / (TOKENIZER_FILE + ".tmp")
        self._tokenizer.save(str(temporary))
        temporary.rename(folder / TOKENIZER_FILE)


def load_tokenizer(name: str) -> Tokenizer:
    """bytes, gpt2, or a path: a tokenizer.json, or a folder with one or with vocab.json and merges.txt."""
    if name == "bytes":
        return Bytes()
    package = require("tokenizers", f"tokenizer '{name}'")
    if name == "gpt2":
        return _gpt2(package)
    path = Path(name)
    if (path / TOKENIZER_FILE).is_file():
        path = path / TOKENIZER_FILE
    if path.is_file():
        return Vocabulary(_read(package.Tokenizer.from_file, path), str(path))
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return Vocabulary(_read(_byte_level(package), path), str(path))
    raise UsageError(
        f"'{name}' is no tokenizer: type bytes, gpt2 or bpe, the path of a {TOKENIZER_FILE}, or of a folder with "
        "vocab.json and merges.txt"
    )


def tokenizer_sha256(name: str) -> str | None:
    """Of the files of a tokenizer that is given by its path; None of others, or where there are none."""
    path = Path(name)
    known = ([path], [path / TOKENIZER_FILE], [path / "vocab.json", path / "merges.txt"])
    files = next((files for files in known if all(each.is_file() for each in files)), None)
    return None if files is None or name in ("bytes", "gpt2", BPE) else digest_of_files(files)


def read_trained(folder: Path) -> Tokenizer:
    """The BPE that an unfinished corpus was begun with."""
    package = require("tokenizers", "tokenizer 'bpe'")
    path = folder / TOKENIZER_FILE
    return Vocabulary(_read(package.Tokenizer.from_file, path), str(path), BPE)


def check_vocabulary_size(size: int) -> None:
    """Of a BPE to be trained."""
    if not _SMALLEST_BPE <= size <= MAX_VOCABULARY:
        raise UsageError(
            f"a vocabulary of {size}: a BPE over bytes can have {_SMALLEST_BPE} to {MAX_VOCABULARY} token ids"
        )


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE of at most this many ids, as GPT-2's but trained on these texts."""
    package = require("tokenizers", "tokenizer 'bpe'")
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=sorted(package.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer, "the trained BPE", BPE)


def _gpt2(package: Any) -> Tokenizer:
    instead = (
        "type --tokenizer FOLDER with its vocab.json and merges.txt (or its tokenizer.json) if you have them, or "
        "--tokenizer bpe or bytes, which need no network"
    )
    with reaching(_GPT2_HUB, instead):
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

        path = try_to_load_from_cache(_GPT2_HUB, TOKENIZER_FILE)
        if not isinstance(path, str):
            HfApi().model_info(_GPT2_HUB)  # one try, so that a missing network is seen at once
            path = hf_hub_download(_GPT2_HUB, TOKENIZER_FILE)
    found = Vocabulary(_read(package.Tokenizer.from_file, Path(path)), "gpt2")
    if found.name != "gpt2":
        raise UsageError(f"what the hub gave for '{_GPT2_HUB}' is not GPT-2's vocabulary: {instead}")
    return found


def _byte_level(package: Any) -> Any:
    """A reader of GPT-2's own two files."""

    def read(folder: str) -> Any:
        model = package.models.BPE.from_file(str(Path(folder) / "vocab.json"), str(Path(folder) / "merges.txt"))
        tokenizer = package.Tokenizer(model)
        tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = package.decoders.ByteLevel()
        known = [end for end in _ENDS if tokenizer.token_to_id(end) is not None]
        tokenizer.add_special_tokens(known)
        return tokenizer

    return read


def _read(read: Any, path: Path) -> Any:
    try:
        return read(str(path))
    except Exception as error:  # the package's own errors have no other type
        raise UsageError(f"{path} is no tokenizer that the package 'tokenizers' reads: {error}") from None
