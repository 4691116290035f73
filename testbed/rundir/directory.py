"""A run's folder is evidence: made once, never over another, its last file written by rename."""

import difflib
import hashlib
import os
import platform
import re
import subprocess
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from testbed.errors import UsageError
from testbed.records import Environment, Interpreter
from testbed.rundir.identity import LEARNING, code_sha256

__all__ = [
    "RUNS",
    "check_name",
    "environment",
    "interpreter",
    "read_failed",
    "run_folder",
    "write_failed",
]

RUNS = Path("runs")
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "sve")
_LONGEST_REASON = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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
        with suppress(OSError, ValueError):  # a name that no folder can have
            if folder.is_dir():
                return folder
    known = sorted(path.name for path in RUNS.iterdir() if path.is_dir()) if RUNS.is_dir() else []
    close = difflib.get_close_matches(name, known, n=1)
    there = f"{len(known)} run" + "s" * (len(known) != 1)
    hint = f"; did you mean '{close[0]}'?" if close else f"; testbed runs lists what there is: {there}"
    raise UsageError(f"'{name}' is neither a run in {RUNS}/ nor a folder{hint}")


def write_failed(folder: Path, reason: str) -> None:
    """Say why a run failed, by rename: a full disk leaves no empty file behind."""
    partial = folder / "FAILED.partial"
    try:
        partial.write_text(reason + "\n", encoding="utf-8", errors="replace")
        os.replace(partial, folder / "FAILED")
    except OSError:  # the first error is the one to tell
        with suppress(OSError):
            partial.unlink()


def read_failed(folder: Path) -> str:
    """The first line of the reason, whatever became of the file."""
    path = folder / "FAILED"
    if not path.is_file():
        return "FAILED is no file"
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(_LONGEST_REASON).strip() or "no reason was written (was the disk full?)"


def environment() -> Environment:
    """What a result depends on besides its configuration: a whitelist, never the whole environment."""
    return Environment(
        commit=_git("rev-parse", "HEAD"),
        dirty_diff=_git("diff", "HEAD"),
        sources_sha256=code_sha256(LEARNING),
        **vars(interpreter()),
        kernel=platform.release(),
        cpu=_cpu(),
        cpu_features=tuple(_cpu_features()),
        host=hashlib.sha256(platform.node().encode()).hexdigest()[:8],
        cores=os.cpu_count(),
        threads_per_rank=1,
    )


def interpreter() -> Interpreter:
    """What runs a program here, or in a container: of ranks it is what a result depends on."""
    packages = ("torch", "numpy", "pandas", "pyarrow", "matplotlib", "psutil", "pydantic", "tyro")
    return Interpreter(python=platform.python_version(), packages={name: version(name) for name in packages})


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
