"""A world returns its status, and nothing of it survives: not its end, not an interrupt, not kill -9
anywhere."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.emulation.conftest import PRELUDE, ROOT, environment, python

pytestmark = pytest.mark.world

LIVING = """
def main():
    with NetnsBackend(net(2, "10mbit")) as backend:
        child = backend.popen(backend.network.nodes[0], ["sleep", "100"], env=dict(os.environ))
        print("ready", flush=True)
        time.sleep(100)
sys.exit(run_in_world(main))
"""


def marked(marker: str) -> dict[int, list[str]]:
    """Processes that carry the marker in their environment, with their arguments."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
    return found


def host_links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


@pytest.fixture
def living():
    """A world with a network and a program on a node: the outer process and the marker of all of them."""
    marker, links = f"world-test-{uuid.uuid4().hex}", host_links()
    outer = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + LIVING],
        env=environment(MARKER=marker),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert outer.stdout is not None
    assert outer.stderr is not None
    try:
        assert outer.stdout.readline() == "ready\n"
        end = time.monotonic() + 5
        while len(marked(marker)) < 4:  # a program has no environment to read while it is being started
            assert time.monotonic() < end
            time.sleep(0.01)
        yield outer, marker
        assert host_links() == links
        assert not Path("/run/netns/n0").exists()
    finally:
        outer.kill()
        outer.wait()
        outer.stdout.close()
        outer.stderr.close()


def gone(marker: str, within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not marked(marker):
            return True
        time.sleep(0.05)
    return False


def role(marker: str, outer: int, name: str) -> int:
    """The pid of one process of the chain."""
    children = {}
    for pid in marked(marker):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        children[parent] = pid
    chain = {"outer": outer, "middle": children[outer]}
    chain["first"] = children[chain["middle"]]
    chain["node"] = children[chain["first"]]
    return chain[name]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return 7", 7),
        ("sys.exit(3)", 3),
        ("raise RuntimeError", 1),
        ("raise KeyboardInterrupt", 130),
        ("os.kill(os.getppid() or 1, 0); return 0", 0),
    ],
)
def test_the_status_of_main_is_returned(body, status):
    done = python(f"{PRELUDE}\ndef main():\n    {body}\nprint(run_in_world(main))")
    assert done.stdout.strip() == str(status)


def test_a_world_has_its_own_processes_interfaces_and_folders(world):
    inside = world(
        "return {'pid': os.getpid(), 'links': sh('ip -o link').count(chr(10)), 'run': os.listdir('/run'), "
        "'shm': os.listdir('/dev/shm'), 'procs': len([p for p in os.listdir('/proc') if p.isdigit()])}"
    )
    assert inside["pid"] == 1
    assert inside["run"] == ["netns"]
    assert inside["shm"] == []
    assert inside["procs"] <= 2


def test_a_process_with_threads_is_refused():
    code = "import threading; e = threading.Event(); threading.Thread(target=e.wait, daemon=True).start()\n"
    done = python(PRELUDE + code + "run_in_world(lambda: 0)")
    assert done.returncode == 1
    assert "before any thread starts" in done.stderr


@pytest.mark.parametrize("victim", ["outer", "middle", "first"])
def test_kill_9_of_any_of_the_chain_leaves_nothing(living, victim):
    outer, marker = living
    os.kill(role(marker, outer.pid, victim), signal.SIGKILL)
    assert gone(marker)
    assert outer.wait(30) in (-9, 137)


def test_kill_9_of_a_nodes_program_leaves_the_world_to_its_main(living):
    """The negative control of the tests around it: what they look for is found while the world lives."""
    outer, marker = living
    os.kill(role(marker, outer.pid, "node"), signal.SIGKILL)
    assert not gone(marker, within=0.5)
    outer.send_signal(signal.SIGTERM)
    assert outer.wait(30) == 130
    assert gone(marker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_everything_down_and_is_status_130(living, number):
    outer, marker = living
    outer.send_signal(number)
    assert outer.wait(30) == 130
    assert gone(marker)


def test_an_interrupt_that_comes_twice_at_once_is_one():
    code = """
def main():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        time.sleep(0.5)
        print("clean", flush=True)
sys.exit(run_in_world(main))
"""
    outer = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == "ready\n"
        outer.send_signal(signal.SIGINT)
        time.sleep(0.1)
        outer.send_signal(signal.SIGTERM)
        assert outer.stdout.readline() == "clean\n"
    assert outer.returncode == 130


def test_a_second_interrupt_a_second_later_ends_a_main_that_does_not():
    code = """
def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    time.sleep(100)
sys.exit(run_in_world(main))
"""
    outer = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == "ready\n"
        for _ in range(2):  # well apart: the first one is handled late on a machine that is short of time
            outer.send_signal(signal.SIGINT)
            time.sleep(4)
        assert outer.wait(30) == 130


def test_where_namespaces_are_refused_the_caller_hears_the_remedy():
    """max_user_namespaces and max_net_namespaces are 0 in here, as on a hardened machine; a world within
    asks for one."""
    code = """
def outer():
    for name in ("user", "net"):
        with open(f"/proc/sys/user/max_{name}_namespaces", "w") as file:
            file.write("0")
    try:
        run_in_world(lambda: 0)
    except CapabilityError as error:
        print(error)
        return 0
    return 1
"""
    enter = "syscalls.unshare(syscalls.CLONE_NEWUSER); open('/proc/self/setgroups', 'w').write('deny'); "
    enter += "open('/proc/self/uid_map', 'w').write('0 %d 1' % uid); sys.exit(outer())"
    done = python(f"{PRELUDE}{code}\nfrom emulation.kernel import syscalls\nuid = os.getuid()\n{enter}")
    assert done.returncode == 0, done.stderr
    assert "user.max_user_namespaces" in done.stdout
