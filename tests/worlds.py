"""Whether this machine lets a test build a world, found out once."""

import functools
import subprocess
import sys

import pytest

__all__ = ["needs_world"]


@functools.cache
def _refusal() -> str | None:
    probe = "import sys; from emulation.world import run_in_world; sys.exit(run_in_world(lambda: 0))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


needs_world = pytest.mark.skipif(_refusal() is not None, reason=f"no private world here: {_refusal()}")
"""Marks a test that builds a network."""
