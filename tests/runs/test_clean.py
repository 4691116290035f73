"""`testbed clean` ends what is ours and orphaned, and touches nothing else."""

import json
import subprocess
import sys

import pytest

from emulation.kernel.process_tag import VARIABLE, mark
from testbed.errors import UsageError
from tests.emulation.conftest import ROOT, environment
from tests.worlds import needs_world

GONE = {VARIABLE: "4194303:1"}


@pytest.fixture
def own_locks(tmp_path, monkeypatch):
    """No run of anybody else's on this machine is in the way."""
    monkeypatch.setattr("testbed.rundir.machine_lock._FOLDER", tmp_path)


@pytest.fixture
def sleepers():
    """Starts processes that sleep; ends them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**extra: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "60"], env={**environment(), **extra}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_an_orphan_of_ours_is_ended_and_no_other(own_locks, sleepers, tmp_path, monkeypatch):
    from testbed.cli import clean

    monkeypatch.chdir(tmp_path)
    orphan, alive, foreign = sleepers(**GONE), sleepers(**mark()), sleepers()
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/comparison.json.partial").touch()
    (tmp_path / "runs/a/download.partial").touch()
    monkeypatch.setattr(clean, "orphans", lambda: [pid for pid in _orphans() if pid == orphan.pid])
    assert clean.clean(dry_run=True) == "would end 1 process; would remove 1 half-written file"
    assert orphan.poll() is None
    assert clean.clean(dry_run=False) == "ended 1 process; removed 1 half-written file"
    assert orphan.wait(30) == -9
    assert alive.poll() is None
    assert foreign.poll() is None
    assert [path.name for path in (tmp_path / "runs/a").iterdir()] == ["download.partial"]
    assert clean.clean(dry_run=False) == "nothing of ours is left on this machine"


def _orphans() -> list[int]:
    from emulation.kernel.process_tag import orphans

    return orphans()


def test_it_waits_for_runs(own_locks):
    """Refused while one is under way."""
    from testbed.cli import clean
    from testbed.rundir.machine_lock import machine_lock

    with machine_lock(share=True), pytest.raises(UsageError, match="under way"):
        clean.clean(dry_run=True)


FOREIGN = """
import json, os, subprocess, sys, time
from pathlib import Path
from emulation.kernel.commands import tool_path
from emulation.kernel.world import run_in_world

def sh(line):
    return subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout

def state():
    rules = sh("iptables -S; iptables -t mangle -S") if tool_path("iptables") else ""
    return [sh("ip netns list"), sh("ip -o link | cut -d: -f2"), sh("tc qdisc show dev br-foreign"),
            sh("ip -n foreign -o link | cut -d: -f2"), rules, sorted(os.listdir("/dev/shm"))]

def main():
    from testbed.cli import clean
    from testbed.rundir import machine_lock
    machine_lock._FOLDER = here = Path("/dev/shm")
    os.chdir(here)
    for name in (*machine_lock._NAMES, "delay_line.foreign"):
        (here / name).touch()
    sh("ip netns add foreign; ip -n foreign link add n0 type dummy || ip -n foreign link set lo up")
    sh("ip link add br-foreign type bridge")
    sh("tc qdisc add dev br-foreign root handle 1: tbf rate 1mbit burst 8000 limit 60000")
    if tool_path("iptables"):
        sh("iptables -A INPUT -s 192.0.2.1 -j DROP; iptables -t mangle -A FORWARD -j NFQUEUE --queue-num 0")
    foreign = subprocess.Popen(["ip", "netns", "exec", "foreign", "sleep", "60"])
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, "TESTBED_WORLD": "4194303:1"})
    time.sleep(0.2)
    before = state()
    said = clean.clean(dry_run=False)
    print(json.dumps({"said": said, "same": state() == before, "state": before,
                      "orphan": orphan.wait(30), "foreign": foreign.poll()}))
    return 0

sys.exit(run_in_world(main))
"""


@pytest.mark.world
@needs_world
def test_foreign_networks_survive_it():
    """A namespace, a bridge, a shaper, rules and a process of somebody else's, all real, in a world of their own."""
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN], env=environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["said"] == "ended 1 process"
    assert found["orphan"] == -9
    assert found["foreign"] is None
    assert found["same"]
    assert "foreign" in found["state"][0]
    assert "br-foreign" in found["state"][1]
    assert "tbf" in found["state"][2]
