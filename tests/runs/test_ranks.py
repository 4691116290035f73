"""The driver's side of the ranks, with programs that answer every order at once in their place."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emulation.errors import LinkError
from emulation.spec.network import Link, star
from testbed.driver import ranks as module
from testbed.driver.ranks import Ranks
from testbed.errors import RunFailed

pytestmark = pytest.mark.alone

ANSWER = """
import json, os, sys, time
replies = sys.stdout
counter = json.loads(os.environ["TESTBED_COUNTER"])
print(json.dumps({"done": "start"}), file=replies, flush=True)
for line in sys.stdin:
    time.sleep(0.02)
    print(json.dumps({"done": json.loads(line)["do"], **counter}), file=replies, flush=True)
"""


class Quick:
    """A backend whose ranks only answer."""

    code = ANSWER
    network = star(2, Link(), "nic")
    python = sys.executable

    def environment(self, _node):
        return {}

    def counter(self, node):
        return {"kind": "netns", "node": node.name, "delays": "/dev/shm/some"}

    def popen(self, node, _argv, **options):
        return subprocess.Popen([sys.executable, "-S", "-c", self.code, str(node.index)], **options)

    def check_alive(self) -> None:
        pass


def ranks_of(backend: Any, logs: Path) -> Ranks:
    """On a backend that is not whole."""
    return Ranks(backend, logs)


def test_links_are_watched_though_answers_come_at_once(tmp_path, monkeypatch):
    """About once in the time that is set, and not at every order."""
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.2)
    seen = []
    with ranks_of(Quick(), tmp_path) as ranks:
        ranks.watch = lambda: seen.append(1)
        for _ in range(40):
            ranks.order("step")
    assert 3 <= len(seen) <= 20


def test_ranks_know_their_counters_and_segments_from_the_start(tmp_path):
    """Also on a network without delays, for a schedule may bring some."""
    with ranks_of(Quick(), tmp_path) as ranks:
        (first, *_) = ranks.order("counter")
    assert (first["delays"], first["mtu"]) == ("/dev/shm/some", 1500)


def test_what_watching_finds_ends_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.0)

    def fail():
        raise LinkError("gone.")

    with ranks_of(Quick(), tmp_path) as ranks:
        ranks.watch = fail
        with pytest.raises(LinkError):
            ranks.order("step")


class Silent(Quick):
    """A backend whose second rank stops in the middle of an order."""

    code = ANSWER.replace(
        "time.sleep(0.02)",
        """for _ in range(100 if sys.argv[1] == "0" else 0):
        print('{"alive": true}', file=replies, flush=True)
        time.sleep(0.2)
    time.sleep(100)""",
    )


def test_a_rank_that_falls_silent_ends_the_run_with_its_name(tmp_path, monkeypatch):
    """It is not dead, its connections stand; it has only not been heard of."""
    monkeypatch.setattr(module, "SILENCE_SECONDS", 1.5)
    monkeypatch.setattr(module, "_END_SECONDS", 0.2)
    with (
        ranks_of(Silent(), tmp_path) as ranks,
        pytest.raises(RunFailed, match=r"rank 1 on node .* has not been heard of"),
    ):
        ranks.order("step")
