"""A network leaves nothing in the process that built it, meets no other one, and is up and down quickly."""

import json
import subprocess
import sys
from typing import IO

import pytest

from tests.emulation.conftest import PRELUDE, ROOT, environment

pytestmark = pytest.mark.world

HELD = """
def held():
    '''What this process and its world hold.'''
    mounts = open("/proc/self/mounts").read()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "namespaces": os.listdir("/run/netns"),
        "mounts": mounts.count("/run/netns"),
        "processes": sum(each.isdigit() for each in os.listdir("/proc")),
        "threads": len(os.listdir("/proc/self/task")),
        "files": os.listdir("/dev/shm"),
        "interfaces": sorted(os.listdir("/sys/class/net")) if os.path.exists("/proc/net/dev") else [],
    }
"""


def test_a_hundred_networks_leave_nothing(world):
    """Neither descriptors nor namespaces, processes, threads or files; every tenth has a delay."""
    found = world(
        f"""{HELD}
def cycle(number):
    delay = 5_000 if number % 10 == 0 else 0
    with NetnsBackend(net(2, "50mbit", ("nic", "pair")[number % 2], delay_us=delay)) as backend:
        with WireCounter(backend.counter(backend.network.nodes[0])) as counter:
            counter.read()
        if number % 10 == 1:
            backend.link_down(backend.network.nodes[1])
            backend.change(linked(backend.network, rate_bps=10_000_000))
    return held()

found = [cycle(0)]
found += [cycle(number) for number in range(1, 101)]
backend = NetnsBackend(net(2, "50mbit", "nic", delay_us=5_000))
backend.open()
return [found[0], found[10], found[-1], held()]
""",
        timeout=120,
    )
    first, tenth, last, living = found
    assert first == tenth == last
    assert first["namespaces"] == first["files"] == []
    for name in ("descriptors", "namespaces", "mounts", "processes", "files"):
        assert living[name] != last[name]  # the negative control: one that is still there is seen


NEIGHBOUR = """
REACH = '''
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7077), timeout=1)
    print("reached")
except OSError as error:
    print(type(error).__name__)
'''

def main():
    network = net(2, "20mbit")
    a, b = network.nodes
    with NetnsBackend(network) as backend:
        if sys.argv[1] == "listens":
            argv = [sys.executable, "-S", "-m", "emulation.measure.probe_agent", b.address]
            server = backend.popen(b, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            server.stdout.readline()
        print(json.dumps("up"), flush=True)
        sys.stdin.readline()
        client = backend.popen(a, [sys.executable, "-S", "-c", REACH, b.address], stdout=subprocess.PIPE, text=True)
        print(json.dumps(client.communicate()[0].strip()), flush=True)
        sys.stdin.readline()
        backend.kill(b)
        # both measure at once, on one machine: what passes here is the right rate and no other, not its last percent
        measured = verify.verify(backend, network, verify.Tolerance(rate=0.05, round_trip_us=5000))
        print(json.dumps([measured.ok, [node.address for node in network.nodes]]), flush=True)
    return 0
sys.exit(run_in_world(main))
"""


def pipes_of(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def test_two_networks_at_once_do_not_meet():
    """The same names and addresses in both: who listens in one is reached from there only, and both are proven."""
    worlds = [
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE + NEIGHBOUR, role],
            env=environment(),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in ("listens", "does not")
    ]
    try:
        pipes = [pipes_of(world) for world in worlds]

        def said():
            return [json.loads(stdout.readline()) for _, stdout in pipes]

        def go_on():
            for stdin, _ in pipes:
                stdin.write("\n")
                stdin.flush()

        assert said() == ["up", "up"]
        go_on()
        assert said() == ["reached", "ConnectionRefusedError"]
        go_on()
        assert said() == [[True, ["10.77.0.1", "10.77.0.2"]]] * 2
        assert [world.wait(30) for world in worlds] == [0, 0]
    finally:
        for world in worlds:
            world.kill()
            world.communicate()


@pytest.mark.parametrize(("nodes", "seconds"), [(8, 1.0), (32, 3.0)])
@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_networks_are_up_and_down_in_time(world, accounting, nodes, seconds):
    """Proven by what the kernel has, and isolated."""
    up, down = world(f"""
backend = NetnsBackend(net({nodes}, "100mbit", "{accounting}"))
began = time.monotonic()
backend.open()
up = time.monotonic()
backend.close()
return [up - began, time.monotonic() - up]
""")
    print(f"{nodes} nodes, {accounting}: up in {up:.2f} s, down in {down:.2f} s")
    assert up < seconds
    assert down < 0.6
