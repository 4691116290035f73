"""Every process of a world carries its driver's mark; without the driver it is found."""

import os
import subprocess
import sys
import time

import pytest

from emulation.kernel.process_tag import VARIABLE, mark, orphans
from tests.emulation.conftest import ROOT, environment


def test_a_process_is_an_orphan_when_its_driver_is_gone():
    """Negative controls: a driver that lives, and no mark at all."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    marks = {
        "orphan": {VARIABLE: f"{gone.pid}:1"},
        "kept": mark(),
        "recycled": {VARIABLE: f"{os.getpid()}:1"},
        "foreign": {},
    }
    processes = {name: subprocess.Popen(["sleep", "60"], env=os.environ | extra) for name, extra in marks.items()}
    try:
        time.sleep(0.1)
        found = orphans()
        assert {name for name, process in processes.items() if process.pid in found} == {"orphan", "recycled"}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


@pytest.mark.world
def test_everything_in_a_world_carries_the_mark(world):
    """Probers, relay and programs; the first process knows it; inside the world none of them is an orphan."""
    found = world("""
from pathlib import Path
from emulation.kernel.process_tag import VARIABLE, orphans
from emulation.measure.probe_client import Probers
network = net(2, "50mbit", delay_us=1000)
marks = {}
with NetnsBackend(network, delays="delay line") as backend, Probers(backend) as probers:
    node = network.nodes[0]
    program = backend.popen(node, ["sleep", "60"], env=backend.environment(node))
    inherits = subprocess.Popen(["sleep", "60"])
    pids = [probers._processes[0].pid, backend.delay_line.pid, program.pid, inherits.pid]
    time.sleep(0.1)
    for pid in pids:
        variables = Path(f"/proc/{pid}/environ").read_text().split("\\0")
        marks[pid] = [each for each in variables if each.startswith(VARIABLE + "=")]
    ours = orphans()
return {"marks": list(marks.values()), "own": os.environ[VARIABLE], "orphans": ours}
""")
    assert found["marks"] == [[f"{VARIABLE}={found['own']}"]] * 4
    assert found["orphans"] == []


@pytest.mark.world
def test_the_mark_names_the_driver():
    code = "from emulation.kernel.world import run_in_world\nimport os\n"
    code += "print(os.getpid(), flush=True)\nrun_in_world(lambda: print(os.environ['TESTBED_WORLD']) or 0)\n"
    code += "assert 'TESTBED_WORLD' not in os.environ"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={k: v for k, v in environment().items() if k != VARIABLE},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    pid, named = done.stdout.split()
    assert named.startswith(f"{pid}:")
