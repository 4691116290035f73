"""Nodes in namespaces: built as asked, counted to the byte, with no second path; each guard with what makes
it fail."""

import pytest

pytestmark = pytest.mark.world


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_the_kernel_has_what_was_asked_for_also_after_reshaping(world, accounting):
    found = world(f"""
network = net(4, "300mbit", "{accounting}")
with NetnsBackend(network) as backend:
    first = backend.check_readback()
    backend.shape(network.unshaped())
    backend.check_readback()
    backend.shape(linked(network, rate_bps=5_000_001))
    backend.check_readback()
    return first
""")
    tx = found["nodes"]["n0"]["tx"]
    have = tx["classes"]["2"] if accounting == "pair" else tx
    assert have["rate_bps"] == 300_000_000


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_the_kernel_counts_what_a_wire_puts_around_a_packet(world, accounting):
    """24 bytes beside the Ethernet header; none of them is noticed."""
    overheads, said = world(f"""
network = net(2, "30mbit", "{accounting}")
with NetnsBackend(replace(network, framing="ethernet")) as backend:
    tx = backend.check_readback()["nodes"]["n0"]["tx"]
    backend.shape(network)
    plain = backend.check_readback()["nodes"]["n0"]["tx"]
    backend.network = replace(network, framing="ethernet")
    try:
        backend.check_readback()
        said = ""
    except LinkError as error:
        said = str(error)
    return [[each.get("classes", {{}}).get("2", each)["overhead_bytes"] for each in (tx, plain)], said]
""")
    assert overheads == [24, 0]
    assert "overhead" in said


FILTER = "tc -n n0 filter add dev eth0 parent 1: protocol ip prio 2 u32"


@pytest.mark.parametrize(
    ("accounting", "behind_its_back"),
    [
        ("nic", "tc -n n1 qdisc replace dev eth0 root tbf rate 310mbit burst 131072b limit 1500000b"),
        ("nic", "tc -n n1 qdisc change dev eth0 root tbf rate 300mbit burst 1000000b limit 1500000b"),
        ("nic", "tc -n switch qdisc replace dev sw1 root tbf rate 300mbit burst 131072b limit 3000000b"),
        ("nic", "tc -n n0 qdisc del dev eth0 root"),
        (
            "pair",
            "tc -n n0 class change dev eth0 parent 1: classid 1:2 htb rate 200mbit ceil 300mbit burst 64k",
        ),
        ("pair", "tc -n n0 class add dev eth0 parent 1: classid 1:77 htb rate 200mbit"),
        ("pair", "tc -n n0 qdisc replace dev eth0 parent 1:2 handle 99: pfifo limit 1000"),
        ("pair", "tc -n n0 qdisc replace dev eth0 parent 1:2 handle 99: bfifo limit 1000"),
        ("nic", "tc -n n0 qdisc replace dev eth0 parent 1:1 handle 99: bfifo limit 1000"),
        ("pair", "tc -n n0 filter del dev eth0 parent 1: prio 1"),
        ("pair", "tc -n n0 filter del dev eth0 parent 1: prio 1 handle 800::800 u32"),
        (
            "pair",
            "tc -n n0 filter del dev eth0 parent 1: prio 1 && tc -n n0 filter add dev eth0 parent 1: "
            "protocol ip prio 1 u32 match ip dst 10.77.0.2/32 flowid 1:fff",
        ),
        (
            "pair",
            "tc -n n0 filter del dev eth0 parent 1: prio 1 && tc -n n0 filter add dev eth0 parent 1: "
            "protocol ip prio 1 u32 match ip dst 10.77.0.2/31 flowid 1:2",
        ),
        ("pair", f"{FILTER} match ip dst 10.77.0.2/32 flowid 1:fff"),
        ("pair", f"{FILTER} match ip protocol 6 0xff flowid 1:fff"),
        ("pair", f"{FILTER} match ip dst 10.77.0.0/24 flowid 1:2"),
        ("nic", "tc -n n0 qdisc add dev eth0 clsact"),
        ("nic", "tc -n switch qdisc add dev sw1 clsact"),
        ("nic", "tc -n n1 qdisc add dev eth0 handle ffff: ingress"),
        ("nic", "ip -n n0 link set dev eth0 gso_max_segs 40"),
        ("nic", "ip -n n0 link set dev eth0 mtu 1400"),
        ("nic", "ip -n switch link set dev sw0 mtu 1400"),
    ],
)
def test_a_shaper_changed_behind_its_back_is_found(world, accounting, behind_its_back):
    said = world(f"""
with NetnsBackend(net(2, "300mbit", "{accounting}")) as backend:
    sh("{behind_its_back}")
    try:
        backend.check_readback()
    except LinkError as error:
        return str(error)
""")
    assert said is not None, "nothing was found"
    assert "the kernel has" in said or "not asked for" in said or "is missing" in said


def test_the_readback_agrees_with_tc(world):
    """tc reads the same numbers, rounded."""
    both = world("""
with NetnsBackend(net(2, "300mbit")) as backend:
    return [backend.readback()["nodes"]["n0"]["tx"], json.loads(sh("tc -n n0 -j -s qdisc show dev eth0"))[0]]
""")
    ours, theirs = both
    assert ours["rate_bps"] == theirs["options"]["rate"] * 8
    assert ours["burst_bytes"] == pytest.approx(theirs["options"]["burst"], rel=0.001)


def test_a_command_that_fails_raises_and_leaves_nothing(world):
    said = world("""
from emulation.kernel.commands import ToolBatch
with NetnsBackend(net(2)) as backend:
    try:
        ToolBatch(tool="ip", netns="n0", lines=("link set lo up", "link set nothing up")).run()
    except EmulationError as error:
        said = str(error)
sh("ip netns add n1")
try:
    NetnsBackend(net(2)).open()
except EmulationError:
    return [said, os.listdir("/run/netns")]
""")
    assert "ip -n n0 link set nothing up" in said[0]
    assert said[1] == []


def test_an_idle_network_carries_no_byte(world):
    counted = world("""
with NetnsBackend(net(3, "10mbit")) as backend:
    time.sleep(1)
    counters = [WireCounter(backend.counter(node)) for node in backend.network.nodes]
    return [[c.read().tx_bytes, c.read().rx_bytes] for c in counters]
""")
    assert counted == [[0, 0]] * 3


RECEIVE = """
import socket, sys
server = socket.create_server((sys.argv[1], 9))
print("up", flush=True)
connection = server.accept()[0]
while connection.recv(1 << 20):
    pass
"""
SEND = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 9))
connection.sendall(bytes(int(sys.argv[2])))
connection.shutdown(socket.SHUT_WR)
while connection.recv(100):
    pass
"""
REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7077), timeout=0.5)
    print("reached")
except OSError:
    print("not")
"""
COUNT = """
import json, sys
from emulation.kernel.counters import WireCounter
with WireCounter(json.loads(sys.argv[1])) as counter:
    print(counter.read().tx_bytes, flush=True)
    sys.stdin.readline()
    print(counter.read().tx_bytes, flush=True)
"""
TRANSFER = f"""
RECEIVE, SEND = {RECEIVE!r}, {SEND!r}

def transfer(backend, size):
    a, b = backend.network.nodes[:2]
    python = [sys.executable, "-S", "-c"]
    receiver = backend.popen(b, [*python, RECEIVE, b.address], stdout=subprocess.PIPE)
    receiver.stdout.readline()
    sender = backend.popen(a, [*python, SEND, b.address, str(size)])
    receiver.wait()
    sender.wait()
    time.sleep(0.1)
"""


@pytest.mark.parametrize(("accounting", "rate"), [("nic", "100mbit"), ("pair", "300mbit"), ("nic", None)])
def test_every_segments_header_is_counted(world, accounting, rate):
    size = 6_000_000
    sent, received, interface = world(f"""{TRANSFER}
with NetnsBackend(net(2, {rate!r}, "{accounting}")) as backend:
    nodes = backend.network.nodes
    with WireCounter(backend.counter(nodes[0])) as a, WireCounter(backend.counter(nodes[1])) as b:
        transfer(backend, {size})
        sent, received = a.read().tx_bytes, b.read().rx_bytes
    links = json.loads(sh("ip -n n0 -j -s link show eth0"))
    return [sent, received, links[0]["stats64"]["tx"]["bytes"]]
""")
    wire = size * 1514 / 1448
    assert sent == pytest.approx(wire, rel=0.005)
    assert received == pytest.approx(sent, rel=0.002)
    if rate is None:
        assert interface < 1.01 * size  # the negative control: an interface's counter misses the headers


def test_counters_work_from_inside_a_node_and_across_reshaping(world):
    inside = world(f"""
network = net(2, "100mbit")
code = {COUNT!r}
with NetnsBackend(network) as backend:
    node = network.nodes[0]
    argv = [sys.executable, "-c", code, json.dumps(backend.counter(node))]
    process = backend.popen(node, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = int(process.stdout.readline())
    backend.shape(linked(network, rate_bps=10_000_000))
    process.stdin.write(chr(10))
    process.stdin.flush()
    return [first, int(process.stdout.readline())]
""")
    assert inside == [0, 0]


def test_drops_are_counted_at_the_end_where_they_happen(world):
    """Two nodes that send as fast as they may to a third, whose own link carries half of it."""
    drops = world("""
network = linked(net(3, "10mbit"), rate_bps=20_000_000, rate_down_bps=10_000_000)
code = "import socket, time\\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\\nend = time.monotonic() + 1\\n"
code += "while time.monotonic() < end: s.sendto(bytes(1400), ('10.77.0.1', 9))"
with NetnsBackend(network) as backend:
    counters = [WireCounter(backend.counter(node)) for node in network.nodes]
    senders = [backend.popen(node, [sys.executable, "-c", code]) for node in network.nodes[1:]]
    for sender in senders:
        sender.wait()
    time.sleep(0.2)
    return [[found.drops, found.tx_drops] for found in (counter.read() for counter in counters)]
""")
    (all_drops, at_the_sender), *_ = drops
    assert (all_drops > 100, at_the_sender) == (True, 0), drops


def test_a_program_on_a_node_has_its_own_pid_namespace_and_environment(world):
    found = world("""
with NetnsBackend(net(3, "10mbit")) as backend:
    node = backend.network.nodes[1]
    code = "import os; e = os.environ; "
    code += "print(os.getpid(), e['RANK'], e['NODE_ADDRS'], os.readlink('/proc/self/ns/net'))"
    argv = [sys.executable, "-c", code]
    process = backend.popen(node, argv, env=backend.environment(node), stdout=subprocess.PIPE, text=True)
    return [process.pid, process.communicate()[0].split(), os.readlink("/proc/self/ns/net")]
""")
    pid, said, home = found
    assert said[0] == str(pid)
    assert said[1:3] == ["1", "10.77.0.1,10.77.0.2,10.77.0.3"]
    assert said[3] != home


def test_with_eth0_down_no_byte_reaches_a_peer(world):
    """And with it up, one does: the same probe is its own negative control."""
    reached = world(f"""
probe = {REACH!r}
with NetnsBackend(net(2)) as backend:
    a, b = backend.network.nodes
    server = backend.popen(b, [sys.executable, "-S", "-m", "emulation.measure.probe_agent", b.address],
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    server.stdout.readline()
    def reached():
        argv = [sys.executable, "-c", probe, b.address]
        process = backend.popen(a, argv, stdout=subprocess.PIPE, text=True)
        return process.communicate()[0].strip()
    before = reached()
    sh("ip -n n0 link set eth0 down")
    return [before, reached()]
""")
    assert reached == ["reached", "not"]


@pytest.mark.parametrize(
    "path",
    [
        "ip -n n0 link add x0 type veth peer name x1 netns n1",
        "ip -n switch link add extra type veth peer name extra netns n1",
        "ip -n switch route add 10.77.0.9/32 dev sw0",
        "ip -n n0 link set eth0 up && ip -n n0 route add 10.78.0.0/24 via 10.77.0.2",
    ],
)
def test_a_second_path_is_found(world, path):
    said = world(f"""
with NetnsBackend(net(2)) as backend:
    check_isolation(backend.network, backend.at)
    sh("{path}")
    try:
        check_isolation(backend.network, backend.at)
    except LinkError as error:
        return str(error)
""")
    assert said is not None
    assert "extra" in said


def test_eight_nodes_are_up_within_a_second(world):
    seconds = world("""
began = time.monotonic()
with NetnsBackend(net(8, "300mbit", "pair")) as backend:
    return time.monotonic() - began
""")
    assert seconds < 1.0


def test_a_congestion_control_of_ones_own_is_recorded_and_an_unknown_one_refused(world):
    said = world("""
with NetnsBackend(replace(net(2), congestion_control="bbr" if "bbr" in
        open("/proc/sys/net/ipv4/tcp_available_congestion_control").read() else "reno")) as backend:
    used = backend.describe()["congestion_control"]
try:
    NetnsBackend(replace(net(2), congestion_control="nonesuch")).open()
except EmulationError as error:
    return [used, str(error)]
""")
    assert said[0][0].split()[0] in ("bbr", "reno")
    assert "nonesuch" in said[1]


def test_host_nodes_count_nothing_and_say_so(world):
    said = world("""
backend = HostBackend(net(2))
with backend:
    node = backend.network.nodes[1]
    process = backend.popen(node, ["sh", "-c", "echo $MASTER_ADDR"], env=backend.environment(node),
                            stdout=subprocess.PIPE, text=True)
    return [process.communicate()[0].strip(), backend.describe()["shaped"],
            WireCounter(backend.counter(node)).read().tx_bytes]
""")
    assert said == ["127.0.0.1", False, None]
