"""What `data.json` of a prepared corpus says, and what is asked for when one is prepared; JSON, with its keys typed."""

from typing import TypedDict

from pydantic import JsonValue

__all__ = ["CorpusAsked", "CorpusDescription", "FileFacts", "Position", "SourceFacts", "SplitFacts", "TokenizerFacts"]


class SourceFacts(TypedDict, total=False):
    """Where documents come from: files, or a set of the Hugging Face hub."""

    name: str
    files: int
    column: str
    """The field of lines or rows that holds the text."""
    document: str
    """What a document of a text file is: the file, or a paragraph."""
    sha256: str
    """Of local files' content, in their order."""
    bytes: int
    left_out: list[str]
    python: str
    """Of the standard library: whose."""
    hub: str
    config: str | None
    split: str
    data_files: str | None
    citation: str
    revision: str | None
    """The commit that was read."""
    asked_revision: str
    """The branch, tag or commit that was asked for, if one was."""


class Position(TypedDict, total=False):
    """Where the document behind the last one read begins."""

    documents: int
    revision: str | None
    state: dict[str, JsonValue]
    """Of `datasets`' stream, by its own names."""


class CorpusAsked(TypedDict):
    """What makes two orders to prepare a corpus the same."""

    source: SourceFacts
    tokens: int
    tokenizer: str
    tokenizer_sha256: str | None
    vocabulary: int | None


class TokenizerFacts(TypedDict):
    """What texts were turned into tokens by."""

    name: str
    vocabulary: int
    """How many token ids there are."""
    separator: int
    """The token behind each document."""


class SplitFacts(TypedDict):
    """How much there is in a split."""

    tokens: int
    documents: int


class FileFacts(TypedDict):
    """A file of the corpus."""

    bytes: int
    sha256: str


class CorpusDescription(TypedDict):
    """All of `data.json`."""

    source: SourceFacts
    tokenizer: TokenizerFacts
    schema_version: int
    finished: bool
    asked: CorpusAsked
    splits: dict[str, SplitFacts]
    sha256: str
    """Of the tokens of both splits."""
    files: dict[str, FileFacts]
