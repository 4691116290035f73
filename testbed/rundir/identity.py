"""What decides a result besides its settings, by content: code, data, versions, images.

It is part of every hash of a learned or a timed cell, so that a cell of other code, or of a corpus that was exchanged
under its name, is another cell. What differs between machines and decides no result (processor, kernel, host) is
recorded beside a cell and not hashed: shards of a sweep still merge.
"""

import ast
import functools
import hashlib
import importlib.util
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import JsonValue

from testbed.config import Arm
from testbed.config.data import STDLIB, Data, corpus_folder, read_description
from testbed.config.plugged import Kind, plugged
from testbed.config.tree import merged
from testbed.errors import TestbedError, UsageError

__all__ = [
    "LEARNING",
    "Content",
    "HostContent",
    "check_host",
    "code_sha256",
    "host_content",
    "learning_content",
    "program_sha256",
    "timing_content",
    "unnamed",
]

_ROOT = Path(__file__).parents[2]
LEARNING = (
    *(f"testbed/{part}/**/*.py" for part in ("codecs", "config", "data", "parallel", "trainer")),
    "testbed/model.py",
    "testbed/learn/worker.py",
    "testbed/driver/combine.py",
)
"""The sources that decide what is learned."""
TIMING = (
    *LEARNING,
    "emulation/**/*.py",
    "testbed/collector/*.py",
    "testbed/pace.py",
    "testbed/targets.py",
    "testbed/sweep/worker.py",
    "testbed/driver/*.py",
)
"""Those that decide a time."""
_BESIDE = ("doctor",)
"""Rooms of `emulation` that say what a machine can do, and make no link."""


class Content(TypedDict):
    """What decides a result besides its settings: digests of what is read and run, and versions."""

    code: str
    codec: str | None
    """Of the package that adds it; None of ours. So exchange and task."""
    exchange: str | None
    task: str | None
    data: str | None
    """Of the text; None where there is none."""
    python: str
    torch: str
    numpy: str
    image: NotRequired[str | None]
    """Of what containers are made of; of times only."""


def learning_content(data: Data, arm: Arm) -> Content:
    """What decides a learned result besides its settings."""
    return {
        "code": code_sha256(LEARNING),
        "codec": plugged_sha256("codecs", arm.codec.kind),
        "exchange": plugged_sha256("exchanges", arm.exchange),
        "task": plugged_sha256("tasks", data.task),
        "data": data_identity(data),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def timing_content(data: Data, arm: Arm, image: str | None = None) -> Content:
    """What decides a time; `image`: the digest of what containers are made of."""
    return {**learning_content(data, arm), "code": code_sha256(TIMING), "image": image}


def program_sha256() -> str:
    """Of all sources that a rank may run: an image's are to be this checkout's."""
    sha = hashlib.sha256()
    for path in sorted(path for package in ("emulation", "testbed") for path in (_ROOT / package).rglob("*.py")):
        sha.update(f"{path.relative_to(_ROOT)}\n".encode() + path.read_bytes())
    return sha.hexdigest()


class HostContent(TypedDict):
    """What hosts must have alike, so that an order gives the same results on each."""

    program: str
    """Digest of all sources."""
    plugged: dict[str, str | None]
    """Of what packages add, by kind and name."""
    data: str | None
    python: str
    torch: str
    numpy: str


def host_content(data: Data, arms: Iterable[Arm]) -> HostContent:
    """What decides results on this host, byte by byte, for orders that are carried out on another."""
    used: set[tuple[Kind, str]] = {("tasks", data.task)}
    for arm in arms:
        used.add(("codecs", arm.codec.kind))
        used.add(("exchanges", arm.exchange))
    added = {f"{kind} {name}": plugged_sha256(kind, name) for kind, name in sorted(used)}
    return {
        "program": program_sha256(),
        "plugged": added,
        "data": data_identity(data),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def check_host(asked: HostContent, here: HostContent) -> None:
    """Raise `TestbedError` unless this host is like the one that the order comes from."""
    for part in sorted({*asked, *here}):
        if asked.get(part) != here.get(part):
            raise TestbedError(
                f"this host has other {part} ({here.get(part)}) than the one that the order comes from "
                f"({asked.get(part)}): install the same commit, corpora and versions on both"
            )


def unnamed(asked: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """A configuration whose data go without their name: they are known by content."""
    return merged(asked, {"preset": {"data": {"corpus": None}}})


def data_identity(data: Data) -> str | None:
    """Of the text that is read, whatever it is called and wherever it lies; None where there is none."""
    if not data.reads_text:
        return None
    if data.corpus == STDLIB:
        return _standard_library_sha256()
    try:
        description = read_description(corpus_folder(data.corpus))
    except UsageError:  # said when it is to be read; until then its cells can be named
        return f"{data.corpus} is not there"
    files = sorted((name, file["sha256"]) for name, file in description["files"].items())
    return _sha256([f"{files}", f"{description['tokenizer']['vocabulary']}"])


@functools.cache
def _standard_library_sha256() -> str:
    from testbed.data.corpus import standard_library

    return standard_library().sha256


@functools.cache
def plugged_sha256(kind: Kind, name: str) -> str | None:
    """Digest of the sources of an installed package that adds this codec, exchange or task: all of its top-level
    module; None where it is ours."""
    entry = plugged(kind, name)
    if entry is None:
        return None
    found = importlib.util.find_spec(entry.module.partition(".")[0])
    if found is None or found.origin is None:
        return f"{entry.value} {entry.dist.version if entry.dist else ''}"
    origin = Path(found.origin)
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    return _sha256([entry.attr, *sorted(_tree(file, origin.parents[1]) for file in files)])


@functools.cache
def code_sha256(patterns: tuple[str, ...], root: Path = _ROOT) -> str:
    """Of the syntax of these files below `root`: without comments and docstrings, and whatever the files' names are.

    An import of ours counts as the definition that it names, so that a module that moves changes nothing.
    """
    files = {path for pattern in patterns for path in root.glob(pattern)}
    kept = (path for path in files if not (path.parent.name == "emulation" and path.stem in _BESIDE))
    return _sha256(sorted(_tree(path, root) for path in kept))


def _tree(path: Path, root: Path) -> str:
    """Digest of a file."""
    tree = _parsed(path)
    packages = {each.name for each in root.iterdir() if (each / "__init__.py").is_file()}
    parts = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in packages:
            for alias in node.names:
                parts.append(f"{alias.asname or alias.name} = {_definition(root, node.module, alias.name)}")
        else:
            parts.append(ast.dump(node))
    return _sha256(parts)


def _definition(root: Path, module: str, name: str) -> str:
    """The syntax of what `from module import name` gives: a definition, or a module."""
    place = root / module.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    for node in _parsed(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if name in (alias.asname or alias.name for alias in node.names):
                original = next(alias.name for alias in node.names if name == (alias.asname or alias.name))
                if (root / node.module.partition(".")[0]).is_dir():
                    return _definition(root, node.module, original)
                return ast.dump(node)
        elif name in _names(node):
            return ast.dump(node)
    return f"module {name}"


def _names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]


@functools.cache
def _parsed(path: Path) -> ast.Module:
    """Without docstrings, of fields too; comments are none of the syntax."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [each for each in body if not (isinstance(each, ast.Expr) and _is_text(each.value))]
            node.body = kept or [ast.Pass()]  # pyrefly: ignore
    return tree


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _sha256(parts: Iterable[str]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(hashlib.sha256(part.encode()).digest())
    return sha.hexdigest()
