"""A run's folder is evidence: made once, never over another, its last file written by rename."""

import difflib
import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from testbed.errors import UsageError
from testbed.runs.identity import LEARNING, code_sha256

__all__ = [
    "RUNS",
    "check_name",
    "environment",
    "interpreter",
    "machine_lock",
    "read_json",
    "run_folder",
    "write_json",
]

RUNS = Path("runs")
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "sve")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOCKS = Path(os.environ.get("TESTBED_LOCK_FOLDER", "/tmp"))
"""Where runs take turns on this machine. Runs whose folders differ do not see each other, and disturb each other
without a word: for suites that pack slow links side by side."""
_LOCK, _SHARED_LOCK = _LOCKS / "slowlink-testbed.lock", _LOCKS / "slowlink-testbed.shared.lock"


def check_name(name: str | None, label: str) -> Path:
    """The folder for a run called `name` (default: date, time and `label`). It must not exist yet."""
    if name is None:
        name = time.strftime("%Y-%m-%d_%H-%M-%S_") + label
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a run's name: letters, digits, '.', '_' and '-' can, 100 at most")
    folder = RUNS / name
    if folder.exists():
        raise UsageError(f"the run directory {folder} exists already; choose another with --name (NAME=…)")
    parent = RUNS if RUNS.exists() else Path()
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        roots = parent == RUNS and parent.is_dir() and parent.stat().st_uid == 0
        hint = '; it is root\'s: sudo chown -R "$USER" runs' if roots else ""
        raise UsageError(
            f"{parent.resolve()} is no folder that you may write to: a run needs one for its results{hint}"
        )
    return folder


def run_folder(name: str) -> Path:
    """The folder of a run that is there, by name or path; raises `UsageError` with the nearest name."""
    for folder in (RUNS / name, Path(name)):
        if folder.is_dir():
            return folder
    known = sorted(path.name for path in RUNS.iterdir() if path.is_dir()) if RUNS.is_dir() else []
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else f"; there are {len(known)} runs: testbed runs lists them"
    raise UsageError(f"'{name}' is neither a run in {RUNS}/ nor a folder{hint}")


def write_json(path: Path, data: Any) -> None:
    """Write by rename: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if isinstance(data, dict):
        data = {"schema_version": 1, **data}
    partial.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


@contextmanager
def machine_lock(*, share: bool) -> Iterator[None]:
    """Hold this machine for one run, for two at once disturb each other. The kernel lets go of it if we die.

    `share` goes on beside another run, with a warning; a run that does not share is refused beside one that does.
    """
    with ExitStack() as stack:
        alone, shared = (stack.enter_context(_lock_file(path)) for path in (_LOCK, _SHARED_LOCK))
        busy = not _lock(alone, fcntl.LOCK_EX) or not _lock(shared, fcntl.LOCK_EX)
        if busy and not share:
            raise UsageError(
                "another run is using this machine, and two at once disturb each other's times: "
                "wait for it to end, or type --share to run beside it all the same"
            )
        if busy:
            print("warning: another run is using this machine; times of both will suffer", file=sys.stderr)
        if share:
            fcntl.flock(alone, fcntl.LOCK_UN)
            fcntl.flock(shared, fcntl.LOCK_UN)
            _lock(shared, fcntl.LOCK_SH)
        else:
            fcntl.flock(shared, fcntl.LOCK_UN)  # held by runs that share; it was free
        yield


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    """An open descriptor of a file that every user may lock; nobody needs to write to it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444)
        os.fchmod(descriptor, 0o444)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: a whitelist, never the whole environment."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty_diff": _git("diff", "HEAD"),
        "sources_sha256": code_sha256(LEARNING),
        **interpreter(),
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cpu_features": _cpu_features(),
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:8],
        "cores": os.cpu_count(),
        "threads_per_rank": 1,
    }


def interpreter() -> dict[str, Any]:
    """What runs a program here, or in a container: of ranks it is what a result depends on."""
    packages = ("torch", "numpy", "pandas", "pyarrow", "matplotlib", "psutil", "pydantic", "tyro")
    return {"python": platform.python_version(), "packages": {name: version(name) for name in packages}}


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_features() -> list[str]:
    """Those by which PyTorch's libraries choose their kernels."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return [flag for flag in _FEATURES if flag in line.split()]
    return []


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
