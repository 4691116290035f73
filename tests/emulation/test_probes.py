"""Probers that end or hang are told of in a sentence, and waited for no longer than makes sense."""

import subprocess
import time
from contextlib import contextmanager
from typing import Any

import pytest

from emulation.errors import EmulationError
from emulation.measure import probe_client as probes
from emulation.measure.probe_client import Probers
from emulation.spec.network import Link, star


class Shells:
    """A backend whose probers are this shell script."""

    network = star(1, Link(), "nic")
    python = "python3"

    def __init__(self, script: str) -> None:
        self.script = script

    def popen(self, _node, _argv, **options):
        return subprocess.Popen(["sh", "-c", self.script], **options)


@contextmanager
def probers(script: str):
    backend: Any = Shells("echo '{}'; " + script)
    with Probers(backend) as found:
        yield found, found.nodes[0]


def test_to_tell_a_dead_prober_is_an_error_with_a_sentence():
    """And no closed pipe, which would be taken for a reader who has read enough."""
    with probers("exit 1") as (found, node):
        found._processes[0].wait()
        with pytest.raises(EmulationError, match="prober on n0 ended unasked"):
            found.tell(node, do="counted")


def test_a_prober_that_hangs_is_waited_for_as_long_as_it_may_take(monkeypatch):
    monkeypatch.setattr(probes, "PATIENCE_SECONDS", 0.2)
    with probers("exec sleep 20") as (found, node):
        found.tell(node, do="ping", count=100, interval=0.005)
        began = time.monotonic()
        with pytest.raises(EmulationError, match="n0 does not answer"):
            found.read(node)
        assert 0.6 < time.monotonic() - began < 5


def test_answers_that_come_together_are_read_one_by_one():
    with probers("""echo '{"sent": 1}'; echo '{"sent": 2}'; read line; echo '{"sent": 3}'""") as (found, node):
        time.sleep(0.2)
        assert [found.read(node)["sent"] for _ in range(2)] == [1, 2]
        found.tell(node, do="more")
        assert found.read(node)["sent"] == 3
