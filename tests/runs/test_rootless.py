"""A whole comparison as an ordinary user."""

import json
import sys

import pytest

from tests.runs.nobody import NOBODY, as_nobody
from tests.runs.tiny import PRESET
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]


@pytest.mark.acceptance
def test_emulate_works_without_root(open_folder):
    """Links proven, ranks trained, nothing needed that only root has; the files are the user's own."""
    done = as_nobody(
        open_folder,
        "emulate", "--bw", "50mbit", "--pace", "none", "--steps", "2", "--arms", "latent,control", "--nodes", "2",
        "--preset", PRESET, "--name", "run", "--share",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "links proven before" in done.stdout
    comparison = open_folder / "runs" / "run" / "comparison.json"
    assert comparison.stat().st_uid == NOBODY
    arms = json.loads(comparison.read_text())["arms"]
    assert [arm["link"] for arm in arms] == ["shaped", "shaped"]


HELLO = "import os; print(os.environ['RANK'], open('/proc/self/uid_map').read().split())"


def test_exec_delays_and_changes_links_without_root(open_folder):
    """The delay line too needs nothing that only root has, nor do a schedule's changes and faults."""
    (open_folder / "schedule.toml").write_text(
        '[[at]]\ntime = "0s"\ndelay = "8ms"\nbw = "20mbit"\n[[at]]\ntime = "0.1s"\nfault = "down"\nnodes = [1]\n'
    )
    code = f"{HELLO}; import time; time.sleep(0.5)"
    done = as_nobody(
        open_folder,
        "exec", "--nodes", "2", "--bw", "50mbit", "--delay", "5ms", "--share", "--schedule", "schedule.toml",
        "--record", "moved.json", "--", sys.executable, "-c", code,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()) == [f"n{rank}: {rank} ['0', '{NOBODY}', '1']" for rank in (0, 1)]
    assert "round trips of up to 10 ms within" in done.stderr
    record = json.loads((open_folder / "moved.json").read_text())
    assert [event["what"] for event in record["events"]] == ["all links: delay 8ms, bw 20mbit", "node 1: down"]
    assert (open_folder / "moved.json").stat().st_uid == NOBODY
