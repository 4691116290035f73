"""Running `testbed` as a user does, on models that take seconds."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PRESET, TARGET = str(HERE / "tiny_preset.toml"), str(HERE / "tiny_target.toml")
MARK = "TESTBED_TEST_MARK"
EXTRA_PATH = ""
"""A folder of packages that the programs see as installed."""


def command(*arguments: str) -> list[str]:
    """`testbed` with these arguments, in this interpreter."""
    return [sys.executable, "-m", "testbed", *arguments]


@functools.cache
def lock_folder() -> str:
    """Where this process's runs hold the machine: workers of a suite, each on links of its own, keep nobody waiting.
    Every user can reach it."""
    folder = tempfile.mkdtemp(prefix="slowlink-testbed-locks.")
    os.chmod(folder, 0o777)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(mark: str = "") -> dict[str, str]:
    """What a user's shell would have, and a mark by which our processes can be found."""
    own = {"PYTHONPATH": f"{HERE.parents[1]}:{EXTRA_PATH}".rstrip(":"), MARK: mark, "COLUMNS": "140"}
    return {**os.environ, "TESTBED_LOCK_FOLDER": lock_folder(), **own}


def run_testbed(cwd: Path, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def marked(mark: str) -> list[int]:
    """Processes that carry the mark in their environment, in any namespace."""
    found = []
    needle = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
