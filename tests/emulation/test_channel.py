"""A driver and its helpers: real processes on both ends of the socket, without the containers around them."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from emulation.errors import CapabilityError, EmulationError, LinkError
from emulation.kernel.commands import _numbers
from emulation.nodes import rpc as channel
from emulation.nodes.helper import hand_over_end, hand_over_namespace, programs
from emulation.nodes.readback import read_devices
from emulation.nodes.rpc import Door
from tests.emulation.conftest import ROOT, environment
from tests.runs.nobody import nobodys

HELPER = [sys.executable, "-P", "-m", "emulation.nodes.helper"]


@pytest.fixture
def door(tmp_path):
    """Where helpers come in."""
    door = Door(f"{tmp_path}/door")
    yield door
    door.close()


@pytest.fixture
def helper(door):
    """A helper's process, and the channel to it."""
    process = subprocess.Popen([*HELPER, door.path, "n0"], env=environment(), cwd=ROOT)
    found = door.meet(["n0"], lambda: None)["n0"]
    yield process, found
    found.close()
    assert process.wait(timeout=5) == 0, "a helper has outlived its driver"


def test_it_is_asked_and_answers(helper):
    """Values and descriptors, as they would be had here."""
    process, asked = helper
    assert asked.alive()
    assert os.getpid() in asked.ask(programs)
    assert process.pid not in asked.ask(programs)
    _, (descriptor,) = asked.ask(hand_over_namespace)
    assert os.fstat(descriptor).st_ino == os.stat("/proc/self/ns/net").st_ino
    os.close(descriptor)
    _, descriptors = asked.ask(hand_over_end, "lo")
    for each in descriptors:
        os.close(each)


def test_what_fails_there_is_raised_here(helper):
    """And the next question has an answer of its own; what it knows no name of is not run."""
    _, asked = helper
    for task, arguments in ((read_devices, (["nonesuch"],)), (hand_over_end, (1,)), (os.getcwd, ())):
        with pytest.raises(EmulationError, match=task.__name__):
            asked.ask(task, *arguments)
    assert os.getpid() in asked.ask(programs)


def test_a_helper_that_is_gone_is_noticed(door):
    process = subprocess.Popen([*HELPER, door.path, "n0"], env=environment(), cwd=ROOT)
    asked = door.meet(["n0"], lambda: None)["n0"]
    process.kill()
    process.wait()
    assert not asked.alive()
    with pytest.raises(LinkError, match="has ended"):
        asked.ask(programs)
    assert not asked.alive()


def test_a_late_answer_is_not_taken_for_the_next_one(helper, monkeypatch):
    process, asked = helper
    monkeypatch.setattr(channel, "_ANSWER_SECONDS", 0.2)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(LinkError, match="does not answer"):
        asked.ask(programs)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    assert not asked.alive()
    with pytest.raises(LinkError):
        asked.ask(programs)


def test_nobody_else_is_let_in(open_folder):
    """Whoever comes by another user than root and us is no helper of ours, and is waited for in vain."""
    with closing(Door(f"{open_folder}/door")) as door:
        process = subprocess.Popen(nobodys([*HELPER, door.path, "n0"]), env=environment(), cwd=ROOT)

        def check():
            if process.poll() is not None:
                raise CapabilityError("it came, and was hung up on")

        with pytest.raises(CapabilityError, match="was hung up on"):
            door.meet(["n0"], check)
        assert process.returncode == 0


def test_a_helper_that_does_not_come_is_waited_for_in_vain(door, monkeypatch):
    monkeypatch.setattr(channel, "_COME_SECONDS", 0.5)
    with pytest.raises(CapabilityError, match="have not come within"):
        door.meet(["n0"], lambda: None)


def test_why_a_helper_does_not_come_is_asked(door):
    def check():
        raise CapabilityError("its container has ended")

    with pytest.raises(CapabilityError, match="its container has ended"):
        door.meet(["n0"], check)


def test_a_place_that_no_socket_can_have_is_said(tmp_path):
    with pytest.raises(EmulationError, match="set TMPDIR"):
        Door(f"{tmp_path}/{'x' * 120}")


SIGNALLED = """
import time
from emulation.nodes.helper import programs, signal_programs

def alive(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split()[2] != "Z"

print(len(programs()))
signal_programs(9)
time.sleep(0.1)
print(sum(map(alive, programs())))
"""


def test_a_signal_reaches_every_program():
    """In a pid namespace of its own, as in a container: the children of programs too, and not the helper."""
    shell = 'sleep 60 & sh -c \'sleep 60 & wait\' & sleep 0.3; "$0" -P -c "$1"; true'
    said = subprocess.run(
        ["unshare", "--fork", "--pid", "--mount-proc", "sh", "-c", shell, sys.executable, SIGNALLED],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "Operation not permitted" in said.stderr:
        pytest.skip("no pid namespace here")
    assert said.stdout.split() == ["3", "0"], said.stderr


def test_sysctls_are_compared_as_numbers():
    """Masks are counted out by the processors that there could be."""
    for value, kernels in (
        ("4096 4194304 67108864", "4096\t4194304\t67108864\n"),
        ("00000003", "3\n"),
        ("00000003", "00,00000000,00000003\n"),
        ("0", "0\n"),
    ):
        assert _numbers(value) == _numbers(kernels)
    assert _numbers("00000003") != _numbers("1,00000003")
    assert _numbers("1 0") != _numbers("0 1")
