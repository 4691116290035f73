"""A run's folder is evidence: made once, never over another, its last file written by rename."""

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from testbed.errors import UsageError

__all__ = ["RUNS", "check_name", "environment", "machine_lock", "read_json", "write_json"]

RUNS = Path("runs")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOCK = Path(tempfile.gettempdir()) / "slowlink-testbed.lock"


def check_name(name: str | None, label: str) -> Path:
    """The folder for a run called `name` (default: date, time and `label`). It must not exist yet."""
    if name is None:
        name = time.strftime("%Y-%m-%d_%H-%M-%S_") + label
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a run's name: letters, digits, '.', '_' and '-' can, 100 at most")
    folder = RUNS / name
    if folder.exists():
        raise UsageError(f"the run directory {folder} exists already; choose another with --name (NAME=…)")
    return folder


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
    """Hold this machine for one run, for two at once disturb each other. The kernel frees it if we die.

    `share` goes on beside another run, with a warning.
    """
    descriptor = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not share:
                raise UsageError(
                    "another run is using this machine, and two at once disturb each other's times: "
                    "wait for it to end, or type --share to run beside it all the same"
                ) from None
            print("warning: another run is using this machine; times of both will suffer", file=sys.stderr)
        yield
    finally:
        os.close(descriptor)


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: a whitelist, never the whole environment."""
    packages = ("torch", "numpy", "pandas", "pyarrow", "matplotlib", "psutil", "pydantic", "tyro")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty_diff": _git("diff", "HEAD"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads_per_rank": 1,
    }


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
