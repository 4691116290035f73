"""Worlds for tests: each runs in a process of its own, since a world is entered by forking a single
thread."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATED = "TESTBED_TEST_EMULATED_CPU"
"""Set where the processor itself is emulated (benchmarks/netem_vm.py): timers are milliseconds late there, so buckets
are as deep as for large messages, and a round trip may be 5 ms off."""
PRELUDE = """
import json, os, signal, socket, subprocess, sys, time
from contextlib import suppress
from dataclasses import asdict, replace
from emulation.measure import verify
from emulation.kernel.counters import WireCounter
from emulation.errors import *
from emulation.nodes.isolation import check_isolation
from emulation.spec.network import *
from emulation.nodes.host import HostBackend
from emulation.nodes.netns import NetnsBackend
from emulation.spec.units import *
from emulation.kernel.world import run_in_world

with suppress(OSError):  # what is measured here is the links, not how long a busy machine keeps a prober waiting
    os.setpriority(os.PRIO_PROCESS, 0, -10)

EMULATED = bool(os.environ.get("TESTBED_TEST_EMULATED_CPU"))
TOLERANCE = verify.Tolerance(rate=0.05, round_trip_us=5000.0) if EMULATED else verify.Tolerance()

def net(n=2, rate=None, accounting="nic", **link):
    network = star(n, Link(rate_bps=parse_rate(rate) if rate else None, **link), accounting)
    return replace(network, smallest_message_bytes=5_000_000) if EMULATED else network

def linked(network, **link):
    return replace(network, link=Link(**link), node_links=(), pair_links=())

def sh(text, check=True):
    return subprocess.run(text, shell=True, check=check, capture_output=True, text=True).stdout

"""


def environment(**extra: str) -> dict[str, str]:
    """What a subprocess needs to import the package from this checkout."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    extra |= {EMULATED: os.environ[EMULATED]} if EMULATED in os.environ else {}
    return {"PYTHONPATH": str(ROOT), "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **extra}


def python(code: str, timeout: float = 60, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**extra),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@functools.cache
def refusal() -> str:
    """Why this machine has no worlds; empty if it has."""
    done = python(PRELUDE + "sys.exit(run_in_world(lambda: 0))")
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def _skip_without_worlds(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("world") and refusal():
        pytest.skip(f"no private world here: {refusal()}")


def in_world(body: str, timeout: float = 60, *, prelude: str = "", beside_engine: bool = False, **extra: str) -> Any:
    """Run the body of a function inside a world; what it returns comes back through JSON."""
    indented = "\n".join("    " + line for line in body.strip("\n").splitlines())
    code = (
        f"{PRELUDE}{prelude}\ndef body():\n{indented}\n\n"
        "def main():\n    print(json.dumps(body(), default=asdict))\n    return 0\n"
        f"sys.exit(run_in_world(main, beside_engine={beside_engine}))"
    )
    done = python(code, timeout, **extra)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def world() -> Callable[[str], Any]:
    """`world(body)`: see `in_world`."""
    return in_world
