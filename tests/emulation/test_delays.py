"""Delay, jitter, loss and reordering, by whichever this machine has: netem or the delay line. One suite for both."""

import os
import re
from dataclasses import replace

import pytest

from emulation.measure.datagrams import binomial, needed
from emulation.measure.measurement import PathLoss
from emulation.measure.tolerance import loss_problems
from emulation.shaping.rules import delay_rules, rule_lines
from emulation.spec.network import Link, star
from tests.emulation.conftest import EMULATED

pytestmark = pytest.mark.world
SLACK_US = 6000 if EMULATED in os.environ else 1500

MEASURE = """
network = net({n}, "{rate}", "{accounting}", {link})
with NetnsBackend(network) as backend:
    measured = verify.verify(backend, network, TOLERANCE)
    return asdict(measured) | {{"by": backend.describe()["delays"]}}
"""


@pytest.mark.parametrize(
    ("n", "rate", "accounting", "link"),
    [
        (2, "100mbit", "nic", "delay_us=20_000"),
        (3, "50mbit", "pair", "delay_us=5_000"),
        (2, "20mbit", "nic", "delay_us=10_000, jitter_us=1_000, distribution='uniform'"),
        (2, "20mbit", "pair", "delay_us=10_000, loss=0.02"),
        (2, "20mbit", "nic", "delay_us=10_000, loss=0.05, loss_burst=4"),
        (2, "20mbit", "pair", "loss=0.01"),
    ],
)
def test_links_delay_and_lose_what_was_asked_for(world, n, rate, accounting, link):
    measured = world(MEASURE.format(n=n, rate=rate, accounting=accounting, link=link), timeout=120)
    assert measured["ok"]
    assert measured["by"] in ("netem", "delay line")
    assert len(measured["losses"]) == (n * (n - 1) if "loss" in link else 0)


PACKETS = """
import statistics
network = net(2, None, "nic", {link})
with NetnsBackend(network) as backend:
    from emulation.measure.probe_client import Probers
    a, b = network.nodes
    with Probers(backend) as probers:
        probers.tell(a, do="ping", to=b.address, count=600, interval=0.002, patience=1.0)
        return probers.read(a)["microseconds"]
"""


def sorted_times(world, link):
    times = world(PACKETS.format(link=link))
    assert None not in times
    return sorted(times)


@pytest.mark.parametrize(
    ("distribution", "spread"), [("normal", 1.414), ("uniform", 0.816), ("pareto", 1.22)]
)  # of two one-way delays, in units of the jitter
def test_jitter_has_the_spread_of_its_distribution(world, distribution, spread):
    times = sorted_times(world, f"delay_us=20_000, jitter_us=3_000, distribution='{distribution}'")
    mean = sum(times) / len(times)
    deviation = (sum((each - mean) ** 2 for each in times) / len(times)) ** 0.5
    assert mean == pytest.approx(40_000, abs=SLACK_US)
    assert 0.7 * spread < deviation / 3000 < 1.5 * spread


def test_reordered_packets_come_first(world):
    """A tenth of them skip one delay, in each direction."""
    times = sorted_times(world, "delay_us=20_000, reorder=0.1")
    early = sum(each < 30_000 for each in times) / len(times)
    assert 0.12 < early < 0.27  # 1 - 0.9 ** 2 = 0.19


def test_paths_differ_where_links_do(world):
    trips = world(
        """
links = ((0, 1, Link(delay_us=30_000)), (2, 0, Link(delay_us=4_000)))
network = replace(net(3, None, "pair"), pair_links=links)
with NetnsBackend(network) as backend:
    return verify.verify(backend, network, TOLERANCE).round_trips
""",
        timeout=120,
    )
    by_pair = {(each["source"], each["target"]): each["median_us"] for each in trips}
    assert by_pair["n0", "n1"] == pytest.approx(30_000, abs=SLACK_US)
    assert by_pair["n0", "n2"] == pytest.approx(4_000, abs=SLACK_US)
    assert by_pair["n1", "n2"] < SLACK_US


def test_a_delay_changes_in_place_and_goes_again(world):
    trips = world("""
network = net(2, "50mbit", "nic", delay_us=20_000)
with NetnsBackend(network) as backend:
    from emulation.measure.probe_client import Probers
    def trip():
        with Probers(backend) as probers:
            return min(probers.pings([network.nodes], 20)[0].median_us for _ in range(3))
    found = [trip()]
    for delay in (5_000, 40_000, 0):
        backend.change(linked(network, rate_bps=50_000_000, delay_us=delay))
        backend.check_readback()
        found.append(trip())
    backend.shape(network.unshaped())
    backend.check_readback()
    return [*found, trip()]
""")
    assert trips[:3] == pytest.approx([40_000, 10_000, 80_000], abs=SLACK_US)
    assert max(trips[3:]) < SLACK_US + 500


def test_ipv6_has_no_way_past_the_links(world):
    """The switch forwards none of it, though a program on a node may turn it on."""
    said = world("""
with NetnsBackend(net(2, "50mbit", "nic", delay_us=20_000)) as backend:
    for index, node in enumerate(("n0", "n1")):
        sh(f"ip netns exec {node} sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0")
        sh(f"ip -n {node} -6 addr add fd77::{index + 1}/64 dev eth0 nodad")
    code = "import socket\\ns = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)\\ns.settimeout(1)\\n"
    code += "try: s.connect(('fd77::2', 9)); print('reached')\\nexcept OSError as e: print(type(e).__name__)"
    process = backend.popen(backend.network.nodes[0], [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return process.communicate()[0]
""")
    assert "reached" not in said
    assert "ConnectionRefused" not in said


DELAY_LINE = """
network = net(2, "50mbit", "nic", delay_us=10_000)
with NetnsBackend(network, delays="delay line") as backend:
    {act}
    try:
        {then}
    except LinkError as error:
        return str(error)
    return "nothing was found"
"""


@pytest.mark.parametrize(
    ("act", "then", "says"),
    [
        ("os.kill(backend.delay_line.pid, signal.SIGKILL); time.sleep(0.2)", "backend.check_alive()", "relay ended"),
        (
            "os.kill(backend.delay_line.pid, signal.SIGKILL); time.sleep(0.2)",
            "verify.verify(backend, network)",
            "relay ended",
        ),
        ("os.kill(backend.delay_line.pid, signal.SIGSTOP); time.sleep(3.5)", "backend.check_alive()", "silent"),
        ('sh("ip netns exec switch iptables -t mangle -F")', "backend.check_readback()", "rules should be"),
        (
            'sh("ip netns exec switch iptables -t mangle -I FORWARD -j ACCEPT")',
            "backend.check_readback()",
            "rules should be",
        ),
    ],
)
def test_a_broken_delay_line_is_found(world, act, then, says):
    assert says in world(DELAY_LINE.format(act=act, then=then))


def test_a_dead_relay_lets_nothing_pass(world):
    """Not delayed must not become not shaped: there is no bypass."""
    lost = world("""
from emulation.measure.probe_client import Probers
network = net(2, "50mbit", "nic", delay_us=10_000)
with NetnsBackend(network, delays="delay line") as backend, Probers(backend) as probers:
    before = probers.pings([network.nodes], 20)[0].lost
    os.kill(backend.delay_line.pid, signal.SIGKILL)
    time.sleep(0.2)
    return [before, probers.pings([network.nodes], 20)[0].lost]
""")
    assert lost == [0, 20]


def test_a_wrong_delay_is_found(world):
    problems = world("""
network = net(2, "50mbit", "nic", delay_us=10_000)
with NetnsBackend(linked(network, rate_bps=50_000_000, delay_us=12_000)) as backend:
    return verify.check(verify.measure(backend, network, 0.3))
""")
    assert any(re.search(r"round trip of 2[4-9]\.", each) for each in problems), problems  # a busy machine adds some


WRONG = """
from emulation.measure.probe_client import Probers
from tests.emulation.measured import measurement
network = net({n}, "50mbit", "pair", {asked})
with NetnsBackend({made}) as backend, Probers(backend) as probers:
    round_trips, losses = verify.datagrams(probers, network)
return verify.check(replace(measurement([], round_trips), losses=losses))
"""


@pytest.mark.parametrize(
    ("n", "asked", "made", "says"),
    [
        (2, "loss=0.05", "linked(network, loss=0.01)", "datagrams got lost, asked for 5.000%"),
        (2, "loss=0.01", "network.unshaped()", "datagrams got lost, asked for 1.000%"),
        (2, "loss=0.05, loss_burst=4", "linked(network, loss=0.05)", "in a row, asked for 4.00"),
        (2, "loss=0.05", "linked(network, loss=0.05, loss_burst=4)", "in a row, asked for 1.05"),
        (2, "delay_us=20_000, jitter_us=20_000", "network.unshaped()", "in the median, asked for 40.00"),
        (2, "delay_us=20_000, jitter_us=5_000", "linked(network, delay_us=20_000)", "a jitter as asked for would"),
        (
            2,
            "delay_us=20_000, jitter_us=2_000",
            "linked(network, delay_us=20_000, jitter_us=8_000)",
            "a jitter as asked for would",
        ),
    ],
)
def test_a_wrong_loss_or_jitter_is_found(world, n, asked, made, says):
    problems = world(WRONG.format(n=n, asked=asked, made=made))
    assert any(says in each for each in problems), problems


def test_a_path_that_should_lose_nothing_is_watched_beside_one_that_should(world):
    problems = world("""
from emulation.measure.probe_client import Probers
from tests.emulation.measured import measurement
base = net(3, "50mbit", "pair")
network = replace(base, pair_links=((0, 1, Link(rate_bps=50_000_000, loss=0.05)),))
wrong = replace(network, pair_links=(*network.pair_links, (1, 0, Link(rate_bps=50_000_000, loss=0.05))))
with NetnsBackend(wrong) as backend, Probers(backend) as probers:
    round_trips, losses = verify.datagrams(probers, network)
return verify.check(replace(measurement([], round_trips), losses=losses))
""")
    assert any(each.startswith("n1 -> n0") and "asked for 0.000%" in each for each in problems), problems


def test_a_loss_too_rare_to_be_proven_is_no_proven_loss():
    rare = Link(rate_bps=10**8, loss=0.001, loss_burst=5)
    low, high = binomial(round(needed(rare)), rare)
    assert 0 < low < 0.001 < high
    low, high = binomial(2000, rare)
    line = PathLoss(
        source="n0", target="n1", sent=2000, lost=2, loss=0.001, asked=0.001, lowest=low, highest=high,
        run=None, run_asked=None, runs=0,
    )  # fmt: skip
    assert "cannot tell a loss of 0.100% from none" in loss_problems(line)[0]


def test_losses_in_runs_have_a_queue_of_their_own():
    """Shared, each path would see the others' runs cut short."""
    network = star(3, Link(loss=0.1, loss_burst=3), "pair")
    assert len(delay_rules(network)) == 6
    assert len(delay_rules(replace(network, accounting="nic"))) == 3
    assert len(delay_rules(star(3, Link(loss=0.1), "pair"))) == 1


def test_few_rules_tell_the_paths_apart():
    slow = Link(delay_us=10_000)
    assert rule_lines(delay_rules(star(8, slow, "nic")), 8) == ["-A FORWARD -j NFQUEUE --queue-num 0"]
    one = replace(star(4, Link(), "nic"), node_links=((2, slow),))
    assert rule_lines(delay_rules(one), 4) == ["-A FORWARD -i sw2 -j NFQUEUE --queue-num 1"]
    pair = replace(star(3, Link(), "pair"), pair_links=((0, 1, slow),))
    assert rule_lines(delay_rules(pair), 3) == [
        "-N from000",
        "-A FORWARD -i sw0 -j from000",
        "-A from000 -o sw1 -j NFQUEUE --queue-num 0",
    ]


def test_jitter_ends_without_a_loss(world):
    """Packets that wait in a heap and packets that come in order must not be let go by one verdict."""
    times = world("""
from emulation.measure.probe_client import Probers
network = net(2, None, "nic", delay_us=40_000, jitter_us=15_000)
with NetnsBackend(network, delays="delay line") as backend, Probers(backend) as probers:
    a, b = network.nodes
    probers.tell(a, do="ping", to=b.address, count=400, interval=0.002, patience=1.0)
    time.sleep(0.4)
    backend.change(linked(network, delay_us=40_000))
    found = probers.read(a)["microseconds"]
    backend.check_readback()
    return found
""")
    assert None not in times
    assert min(times[-50:]) > 79_000


def test_what_the_relay_holds_is_read_back(world):
    said = world("""
network = net(2, "50mbit", "nic", delay_us=10_000)
with NetnsBackend(network, delays="delay line") as backend:
    line = backend.delay_line
    wrong = line.rules[0].settings() | {"delay_us": 9_000}
    line._tell({"lines": [wrong]})
    try:
        backend.check_readback()
    except LinkError as error:
        return str(error)
""")
    assert "rules should be" in said


def test_rules_of_many_nodes_are_listed_in_the_kernels_order(world):
    """More than ten chains: iptables sorts their names as text."""
    count = world("""
links = tuple((a, b, Link(delay_us=1000 * (1 + (a + b) % 3))) for a in range(12) for b in range(12) if a != b)
network = replace(net(12, None, "pair"), pair_links=links)
with NetnsBackend(network, delays="delay line") as backend:
    return len(backend.check_readback()["delay_line"])
""")
    assert count == 12 + 12 + 132 + 3
