"""Networks that are not what was asked for, each in a way of its own: the read-back or the measurement finds every one.

More of them stand beside the guards that find them, in test_netns.py, test_verify.py and test_delays.py.
"""

import pytest

pytestmark = pytest.mark.world

WRONG = """
def found(act):
    try:
        act()
    except LinkError as error:
        return str(error)
    return ""

network = net(2, "{rate}", "{accounting}")
with NetnsBackend(network) as backend:
    before = found(backend.check_readback)
    for line in {lines}:
        sh("tc " + line)
    readback = found(backend.check_readback)
    measured = verify.measure(backend, network, 0.4)
    return [before, readback, verify.check(measured)]
"""
OFF = "-n n0 qdisc del dev eth0 root"
DEEP = "burst 10000000b limit 400000b peakrate 1gbit mtu 10000000b"


@pytest.mark.parametrize(
    ("accounting", "lines", "readback", "measured"),
    [
        pytest.param("pair", [OFF], "n0 tx: kind was set to htb", "n0 -> n1, alone", id="unshaped"),
        pytest.param(
            "nic",
            [OFF, "-n switch qdisc replace dev sw1 root pfifo limit 1000"],
            "n0 tx: kind was set to tbf",
            "n0 up, alone",
            id="unshaped, both ends",
        ),
        pytest.param(
            "pair",
            [OFF, "-n n0 qdisc replace dev lo root tbf rate 20mbit burst 20000b limit 200000b"],
            "n0 tx: kind was set to htb",
            "n0 -> n1, alone",
            id="shaped the wrong interface",
        ),
        pytest.param(
            "nic",
            [OFF, "-n n0 qdisc replace dev lo root tbf rate 20mbit burst 20000b limit 200000b"],
            "n0 tx: kind was set to tbf",
            None,  # the receiver's shaper still holds the rate
            id="shaped the wrong interface, nic",
        ),
        pytest.param(
            "pair",
            ["-n n0 class change dev eth0 parent 1: classid 1:2 htb rate 20mbit ceil 1gbit burst 10mb cburst 10mb"],
            "class 2: ceil_bps was set to",
            "a bucket is too deep",
            id="10 MB burst, pair",
        ),
        pytest.param(
            "nic",
            [
                f"-n n0 qdisc change dev eth0 root tbf rate 20mbit {DEEP}",
                f"-n switch qdisc change dev sw1 root tbf rate 20mbit {DEEP}",
            ],
            "burst_bytes was set to",
            "a bucket is too deep",
            id="10 MB burst, nic",
        ),
    ],
)
def test_a_network_that_is_wrong_is_found(world, accounting, lines, readback, measured):
    """By what the kernel says it has, and, separately, by measurement alone."""
    before, said, problems = world(WRONG.format(rate="20mbit", accounting=accounting, lines=lines))
    assert before == ""
    assert readback in said
    if measured is not None:
        assert any(measured in each for each in problems), problems


@pytest.mark.parametrize(
    ("accounting", "line", "measured"),
    [
        (
            "pair",
            "-n n0 class change dev eth0 parent 1: classid 1:2 htb rate 24mbit ceil 25mbit burst 20000b cburst 9000b",
            "n0 -> n1, alone",
        ),
        ("nic", "-n n1 qdisc change dev eth0 root tbf rate 15mbit burst 20000b limit 100000b", "n1 up, alone"),
    ],
)
def test_a_rate_that_changes_behind_our_back_is_found(world, accounting, line, measured):
    """After the links were proven, while they are used."""
    ok, said, problems = world(f"""
from emulation.measure.probe_client import Probers
network = net(2, "20mbit", "{accounting}")
with NetnsBackend(network) as backend:
    ok = verify.verify(backend, network).ok
    with Probers(backend) as probers:
        start = time.monotonic() + 0.2
        for node, to in zip(network.nodes, ([network.nodes[1].address], []), strict=True):
            probers.tell(node, do="flows", to=to, streams=1, start=start, marks=[start], stop=start + 1)
        time.sleep(0.5)
        sh({"tc " + line!r})
        for node in network.nodes:
            probers.read(node)
    try:
        backend.check_readback()
    except LinkError as error:
        said = str(error)
    return [ok, said, verify.check(verify.measure(backend, network, 0.4))]
""")
    assert ok
    assert "the kernel has" in said
    assert any(measured in each for each in problems), problems


TALK = """
import os, socket, sys, time
how, me, peer, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
if how == "shared memory":
    with open(f"/dev/shm/from-{me}", "wb") as file:
        file.write(bytes(size))
    while not os.path.exists(f"/dev/shm/from-{peer}") or os.path.getsize(f"/dev/shm/from-{peer}") < size:
        time.sleep(0.01)
else:
    where = "127.0.0.1" if how == "loopback" else peer
    server = socket.create_server(("0.0.0.0", 9))
    while True:
        try:
            sender = socket.create_connection((where, 9))
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    receiver = server.accept()[0]
    sent = got = 0
    while got < size:
        if sent < size:
            sent += sender.send(bytes(min(10_000, size - sent)))
        got += len(receiver.recv(20_000))
"""


@pytest.mark.parametrize(("how", "shows"), [("network", True), ("loopback", False), ("shared memory", False)])
@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_a_way_past_the_links_shows_in_the_bytes(world, accounting, how, shows):
    """Programs that meet on loopback or in shared memory have sent nothing; over their links, everything."""
    size = 500_000
    statuses, sent, pairs = world(f"""
from emulation.measure.traffic import TrafficCounter
network = net(2, "20mbit", "{accounting}")
with NetnsBackend(network) as backend:
    traffic = TrafficCounter(backend)
    programs = [
        backend.popen(node, [sys.executable, "-S", "-c", {TALK!r}, "{how}", node.address, peer.address, "{size}"])
        for node, peer in network.pairs
    ]
    statuses = [program.wait() for program in programs]
    time.sleep(0.1)
    moved = traffic.read()
    traffic.close()
    return [statuses, list(moved.sent.values()), list(moved.pairs.values())]
""")
    assert statuses == [0, 0]
    assert len(pairs) == 2
    for count in (*sent, *pairs):
        assert count > size if shows else count == 0
