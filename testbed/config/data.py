"""What is read: the task, the corpus it is mixed into, how hard it is; and how many token ids that takes."""

import difflib
import json
import os
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from testbed.config.corpus import CorpusDescription
from testbed.config.model import Model
from testbed.config.plugged import check_known
from testbed.config.tree import STRICT, at_least
from testbed.errors import UsageError

__all__ = [
    "CORPORA",
    "DESCRIPTION",
    "MAX_VOCABULARY",
    "STDLIB",
    "STDLIB_FOLDER",
    "TASKS",
    "Data",
    "check_vocabulary",
    "corpus_folder",
    "read_description",
    "standard_library_folder",
    "vocabulary_needed",
]

STDLIB = "stdlib"
STDLIB_FOLDER = "TESTBED_STDLIB"
"""The variable that names another folder of it than the interpreter's."""
CORPORA = Path("corpora")
"""Where `testbed data prepare` puts a corpus unless told otherwise, and where a bare name is looked for."""
DESCRIPTION = "data.json"
DATA_VERSION = 1
MAX_VOCABULARY = 1 << 16
"""Token ids are kept as uint16."""
BYTES = 256
SNAPSHOT_FILLERS = 16
TASKS = ("recall", "mqar", "snapshot", "text")
"""Ours; installed packages add others."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the sequences are made of. The defaults are bytes of Python source with 16 × 8 facts strewn in."""

    __pydantic_config__ = STRICT

    task: str = "recall"
    """recall: text with facts that are asked for later; mqar: key-value pairs, then queries; snapshot: what
    registers held where a mark stood; text: text alone; or one that an installed package adds (docs/data.md)."""
    options: dict[str, JsonValue] = field(default_factory=dict, hash=False)
    """Options of a task that an installed package adds, by its own names."""
    corpus: str = STDLIB
    """stdlib (the interpreter's standard library, as bytes), or a folder that `testbed data prepare` has made."""
    tokenizer: str | None = None
    """What the corpus must have been prepared with (bytes, gpt2, bpe …); None: whatever it was."""
    keys: int = 16
    """recall, mqar: different keys."""
    values: int = 8
    """recall, mqar, snapshot: different values of a key or register; guessing is right once in so many times."""
    share: float = 0.3
    """recall: the probability that a position starts a fact or a query instead of carrying text."""
    pairs: int = 8
    """mqar: key-value pairs at the start of a sequence; fewer where the context is shorter than four times that."""
    queries: int = 0
    """mqar: queries in a sequence; 0: as many as fit."""
    gap_power: float = 1.0
    """mqar: a of the density a·x^(a − 1) of where a query stands behind the pairs; 1 is uniform, less is sooner."""
    registers: int = 1
    """snapshot: J, what each section sets and a mark must carry."""
    section: int = 16
    """snapshot: tokens between two settings of the registers."""
    lead: int = 5
    """snapshot: how many tokens behind the last setting the first mark may stand."""
    marks: int = 32
    """snapshot: names, of which each section has another."""

    def __post_init__(self) -> None:
        check_known("tasks", self.task, TASKS)
        if self.task in TASKS and self.options:
            raise UsageError(f"the table options is of tasks that packages add, and '{self.task}' is one of ours")
        at_least(1, keys=self.keys, pairs=self.pairs)
        at_least(1, registers=self.registers, lead=self.lead, marks=self.marks)
        at_least(2, values=self.values)
        at_least(0, share=self.share, queries=self.queries)
        if self.share > 1:
            raise UsageError(f"share = {self.share}: it is a probability, 0 to 1")
        if not 0 < self.gap_power < float("inf"):
            raise UsageError(f"gap_power = {self.gap_power}: it must be above 0")
        if self.task == "snapshot" and self.section < self.registers + self.lead:
            raise UsageError(
                f"section = {self.section}: with {self.registers} registers and lead = {self.lead} it takes at least "
                f"{self.registers + self.lead} for a mark to fit in"
            )
        if self.task == "mqar" and self.pairs > self.keys:
            raise UsageError(f"pairs = {self.pairs}: with keys = {self.keys} there can be no more, for keys differ")

    @property
    def reads_text(self) -> bool:
        """Whether there is a corpus in it."""
        return self.task in ("recall", "text")


def vocabulary_needed(data: Data) -> int:
    """Token ids that the sequences of one of our tasks may hold. Reads the description of a prepared corpus."""
    if data.task == "mqar":
        return 1 + data.keys + data.values
    if data.task == "snapshot":
        return snapshot_vocabulary(data.registers, data.values, data.marks)
    text = corpus_vocabulary(data)
    return text if data.task == "text" else text + data.keys * (1 + data.values)


def shortest_section(registers: int) -> int:
    """Tokens of the shortest sections of the snapshot task: registers and a mark, up to a power of two."""
    return 1 << registers.bit_length()


def short_section(registers: int, context: int) -> int:
    """Tokens of the shortest sections in a short sequence: a 32nd of the context, so that there are at most 16."""
    return max(shortest_section(registers), context // 32)


def check_snapshot(data: Data, context: int, short: tuple[int, ...]) -> None:
    """Raise `UsageError` unless sequences of all these lengths can ask for something."""
    sections = context // 2 // data.section
    least = 2 * shortest_section(data.registers)
    if sections < 1 or min(short) < least:
        raise UsageError(
            f"a context of {context} with section = {data.section}, and short contexts of {min(short)}: at least "
            f"{2 * data.section} and {least} are needed for a section to fit into the front half"
        )
    most = max(-(-context // 2 // data.section), *(each // 2 // short_section(data.registers, each) for each in short))
    if data.marks < most:
        raise UsageError(f"marks = {data.marks}: with up to {most} sections in a sequence there must be as many names")


def snapshot_vocabulary(registers: int, values: int, marks: int) -> int:
    """Token ids of the snapshot task: fillers, settings, values, marks, queries."""
    return SNAPSHOT_FILLERS + registers * values + values + marks * (1 + registers)


def check_vocabulary(data: Data, model: Model, needed: int) -> None:
    """Raise `UsageError` unless the model has an embedding for every one of the token ids that the data needs."""
    if model.vocabulary < needed:
        of = "" if not data.reads_text else f" on '{data.corpus}'"
        raise UsageError(
            f"a vocabulary of {model.vocabulary} is too small for task '{data.task}'{of}, which needs {needed}: "
            f"type vocabulary = {needed} in [model]"
        )


def corpus_vocabulary(data: Data) -> int:
    """Token ids of the text alone."""
    if data.corpus == STDLIB:
        if data.tokenizer not in (None, "bytes"):
            raise UsageError(
                f"tokenizer = '{data.tokenizer}': corpus '{STDLIB}' is read as bytes; for other tokens type "
                f"'testbed data prepare {STDLIB} --tokenizer {data.tokenizer}', and the folder it names as corpus"
            )
        return BYTES
    folder = corpus_folder(data.corpus)
    tokenizer = read_description(folder)["tokenizer"]
    if data.tokenizer not in (None, tokenizer["name"]):
        raise UsageError(
            f"{folder} was prepared with tokenizer '{tokenizer['name']}', not '{data.tokenizer}': leave 'tokenizer' "
            f"out, or prepare it again with --tokenizer {data.tokenizer}"
        )
    return int(tokenizer["vocabulary"])


def standard_library_folder() -> Path:
    """The interpreter's standard library; in a container the one of the machine that drives it, so that nodes of every
    kind read the same text."""
    return Path(os.environ.get(STDLIB_FOLDER) or sysconfig.get_paths()["stdlib"])


def corpus_folder(name: str) -> Path:
    """The folder of a prepared corpus, given by its path or by its name in `corpora/`."""
    for folder in (Path(name), CORPORA / name):
        if folder.is_dir():
            return folder
    for folder in (Path(name), CORPORA / name):
        if unfinished(folder).is_dir():
            raise UsageError(f"{folder} is not finished: type the 'testbed data prepare' that began it again")
    known = [STDLIB, *(sorted(each.parent.name for each in CORPORA.glob(f"*/{DESCRIPTION}")))]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UsageError(
        f"'{name}' is no corpus; there are {', '.join(known)}, or the path of a folder that "
        f"'testbed data prepare' has made{hint}"
    )


def unfinished(folder: Path) -> Path:
    """Where a folder is filled before it gets its name."""
    return folder.with_name(folder.name + ".part")


def read_description(folder: Path) -> CorpusDescription:
    """`data.json` of a finished folder; raises `UsageError` for anything else."""
    path = folder / DESCRIPTION
    again = "type 'testbed data prepare' again with another --out"
    if not path.is_file():
        raise UsageError(f"{folder} holds no {DESCRIPTION}: it is no prepared corpus, or not finished; {again}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["schema_version"]
        if version == DATA_VERSION:
            if found["finished"] is not True:
                raise UsageError(f"{folder} is not finished; {again}")
            int(found["tokenizer"]["vocabulary"]), found["tokenizer"]["name"], found["files"], found["splits"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from None
    if version != DATA_VERSION:
        raise UsageError(f"{path} has schema version {version!r}, this testbed reads {DATA_VERSION}; {again}")
    return found
