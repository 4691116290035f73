"""`testbed exec` on nodes that are plain processes: when it ends, what it watches, and what ends it."""

import io
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from emulation.errors import LinkError
from emulation.nodes.base import Backend
from emulation.spec.events import Change, Schedule
from emulation.spec.network import Link, star
from testbed.cli import execute
from testbed.cli.execute import ExecRequest, run_everywhere
from testbed.cli.terminal import shell_on

NETWORK = star(2, Link(rate_bps=50_000_000), "nic")


class Local:
    """A backend whose nodes are this machine; `fails_after` seconds its links are lost, a change takes `slow`."""

    starts_programs = True
    shell = Backend.shell

    def __init__(self, network=NETWORK, *, fails_after: float = 1e9, slow: float = 0.0) -> None:
        self.network = network
        self.slow = slow
        self.fails_at = time.monotonic() + fails_after
        self.changing = False
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def environment(self, node):
        return {"RANK": str(node.index)}

    def popen(self, _node, argv, **options):
        self.processes.append(subprocess.Popen(argv, **options))
        return self.processes[-1]

    def check_alive(self) -> None:
        if time.monotonic() > self.fails_at:
            raise LinkError("the relay ended.")

    def change(self, network) -> None:
        self.changing = True
        time.sleep(self.slow)
        self.network = network
        self.changing = False

    def check_readback(self, _readback=None):
        assert not self.changing, "read while a change is under way"
        return {}

    def describe(self):
        return {}


@pytest.fixture
def patient_shell(monkeypatch, tmp_path):
    """The user's shell takes no commands and stays."""
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\nexec sleep 20\n")
    shell.chmod(0o755)
    monkeypatch.setenv("SHELL", str(shell))


@pytest.fixture
def on_this_machine(monkeypatch):
    """Gives how to run an errand: links are not built, traffic is not counted. However it ends, nothing stays open."""
    before = set(os.listdir("/proc/self/fd"))

    def run(errand: ExecRequest, **options) -> int:
        backend: Any = Local(**options)
        nothing = {"sent_bytes": {}, "received_bytes": {}, "pairs": []}
        record = SimpleNamespace(record=lambda: nothing | backend.check_readback())
        traffic = SimpleNamespace(read=lambda: record, close=lambda: None)
        monkeypatch.setattr(execute, "TrafficCounter", lambda _: traffic)
        monkeypatch.setattr(execute, "verify", SimpleNamespace(verify=lambda *_: {}, proof=lambda *_: ""))
        monkeypatch.setattr(execute, "_print_moved", lambda *_: None)
        return run_everywhere(backend, errand)

    monkeypatch.setattr(sys, "stdin", io.StringIO())
    yield run
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_change_under_way_is_waited_for_before_links_are_read(on_this_machine):
    schedule = Schedule(events=(Change(at_seconds=0, settings={"rate_bps": 20_000_000}),))
    assert on_this_machine(ExecRequest(["true"], schedule=schedule), slow=1.0) == 0


def test_a_program_that_closes_its_output_and_goes_on_holds_nobody_up(on_this_machine, capfdbinary):
    """The other's output is shown meanwhile, the links are watched, and it is waited for."""
    code = "import os, time\nrank = os.environ['RANK']\nif rank == '0':\n    os.close(1); os.close(2)\n"
    code += (
        "time.sleep(0.7)\nif rank == '1':\n    print(time.monotonic())\n    os._exit(0)\ntime.sleep(1.2)\nos._exit(7)"
    )
    began = time.monotonic()
    assert on_this_machine(ExecRequest([sys.executable, "-c", code])) == 7
    assert time.monotonic() - began > 1.8
    with pytest.raises(LinkError):
        on_this_machine(ExecRequest(["sh", "-c", "exec >&- 2>&-; sleep 20"]), fails_after=0.5)
    assert time.monotonic() - began < 10


def test_links_are_watched_while_programs_are_silent(on_this_machine):
    began = time.monotonic()
    with pytest.raises(LinkError):
        on_this_machine(ExecRequest(["sleep", "20"]), fails_after=0.3)
    assert time.monotonic() - began < 10


def test_links_are_watched_while_there_is_only_a_shell(on_this_machine, patient_shell):
    """The shell is ended when they fail."""
    began = time.monotonic()
    with pytest.raises(LinkError):
        on_this_machine(ExecRequest([], shell="n1"), fails_after=0.3)
    assert time.monotonic() - began < 10


def test_a_schedule_that_fails_ends_the_shell(on_this_machine, patient_shell, monkeypatch):
    def fail(*_):
        raise LinkError("no change today.")

    monkeypatch.setattr(Local, "change", fail)
    schedule = Schedule(events=(Change(at_seconds=0, settings={"rate_bps": 20_000_000}),))
    began = time.monotonic()
    with pytest.raises(execute.EmulationError, match="no change today"):
        on_this_machine(ExecRequest(["true"], shell="n0", schedule=schedule))
    assert time.monotonic() - began < 10


def test_a_shell_ends_by_itself(monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/true")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    backend: Any = Local()
    assert shell_on(backend, NETWORK.nodes[0], threading.Event()) == 0
