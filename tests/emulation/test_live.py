"""Networks that change while they are used: rates, delays, losses and faults, played on real namespaces."""

import statistics

import pytest

pytestmark = pytest.mark.world

LATENCY_SECONDS = 0.25
"""How late an event may be on a machine that others use too; 0.05 is the aim."""

LIVE = """
from emulation.player import Player
from emulation.measure.probe_client import Probers
from emulation.spec.schedule import Change, Fault, Schedule, load_schedule

def change(at, nodes=None, **settings):
    return Change(at_seconds=at, nodes=nodes, settings=settings)

def fault(at, kind, *nodes, groups=()):
    return Fault(at_seconds=at, kind=kind, nodes=nodes, groups=groups)

def wait(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)

def play(backend, *events):
    with Player(backend, Schedule(events=events)) as player:
        player.start()
        wait(lambda: player.finished)
    return player.events

def stream(backend, probers, player, marks):
    '''One flow from n0 to n1 from time zero on, and what arrived between one mark and the next.'''
    a, b = backend.network.nodes[:2]
    start = time.monotonic() + 0.3
    for node in backend.network.nodes:
        to = [b.address] if node == a else []
        times = [start + mark for mark in marks]
        probers.tell(node, do="flows", to=to, streams=1, start=start, marks=times, stop=times[-1] + 0.05)
    time.sleep(start - time.monotonic())
    player.start()
    return [probers.read(node)["received"] for node in backend.network.nodes][1][a.address]

def pinged(probers, pairs, count, interval=0.002):
    '''Round trips in microseconds, None for what was lost; each node asks at most one other.'''
    for a, b in pairs:
        probers.tell(a, do="ping", to=b.address, count=count, interval=interval, patience=0.4)
    return [probers.read(a)["microseconds"] for a, _ in pairs]

def matrix(backend, probers):
    '''Who reaches whom: ".", "x", and "?" if some echoes came back and some did not.'''
    nodes = backend.network.nodes
    rows = [["."] * len(nodes) for _ in nodes]
    for r in range(1, len(nodes)):
        pairs = [(node, nodes[(node.index + r) % len(nodes)]) for node in nodes]
        for (a, b), times in zip(pairs, pinged(probers, pairs, 5), strict=True):
            rows[a.index][b.index] = {0: ".", 5: "x"}.get(times.count(None), "?")
    return ["".join(row) for row in rows]
"""


def lateness(events) -> float:
    """Of the latest event, in seconds."""
    return max(event["applied_seconds"] - event["at_seconds"] for event in events)


def arrived_bps(windows) -> list[float]:
    """Goodput of each window."""
    return [window["segments"] * 1448 * 8 / window["seconds"] for window in windows]


# -- rates


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_a_rate_changes_in_the_middle_of_a_flow(world, accounting):
    """Both halves carry what their rate allows, the connection lives on, and no counter starts anew."""
    windows, events, wire = world(f"""{LIVE}
network = net(2, "40mbit", "{accounting}")
with NetnsBackend(network) as backend, Probers(backend) as probers:
    player = Player(backend, Schedule(events=(change(2.0, rate_bps=10_000_000),)))
    with player, WireCounter(backend.counter(network.nodes[0])) as counter:
        windows = stream(backend, probers, player, [0.5, 1.9, 2.4, 4.4])
        counted = counter.read().tx_bytes
    backend.check_readback()
    return [windows, player.events, counted]
""")
    first, _, second = arrived_bps(windows)
    print("halves", [first / 1e6, second / 1e6])
    print("lateness", lateness(events))
    assert first == pytest.approx(40e6 * 1448 / 1514, rel=0.03)
    assert second == pytest.approx(10e6 * 1448 / 1514, rel=0.03)
    assert lateness(events) <= LATENCY_SECONDS
    assert wire > (40e6 * 1.9 + 10e6 * 2) / 8  # both halves: it has not restarted


STEPS_MBIT = (20, 5, 30, 40, 10, 25, 8, 35, 15, 40, 5, 12, 30, 22, 40, 7, 18, 33, 26, 9, 38, 14, 28, 5)
STEP_SECONDS = 0.5


def mahimahi(rates_mbit) -> str:
    """A trace of deliveries whose intervals have these rates."""
    lines = []
    for step, rate in enumerate(rates_mbit):
        packets = round(rate * 1e6 * STEP_SECONDS / (1504 * 8))
        begin = 1000 * STEP_SECONDS * step
        lines += [str(int(begin + (number + 1) * 1000 * STEP_SECONDS / packets)) for number in range(packets)]
    return "\n".join(lines)


def csv(rates_mbit) -> str:
    """The same as numbers."""
    lines = [f"{STEP_SECONDS * step:g},{rate * 1_000_000}" for step, rate in enumerate(rates_mbit)]
    return "\n".join(["seconds,rate_bps", *lines])


@pytest.mark.parametrize(
    ("accounting", "name", "steps"), [("nic", "trace.csv", 24), ("pair", "trace.csv", 8), ("pair", "trace.up", 8)]
)
def test_a_trace_is_followed(world, tmp_path, accounting, name, steps):
    """What arrives in each half second is what the trace has there; a token bucket is full again after each change."""
    rates = STEPS_MBIT[:steps]
    file = tmp_path / name
    file.write_text(csv(rates) if name.endswith(".csv") else mahimahi(rates))
    mahimahi_too = "" if name.endswith(".csv") else "schedule = replace(schedule.traces[0], repeat_seconds=None)"
    windows, events = world(f"""{LIVE}
network = net(2, "20mbit", "{accounting}", queue_us=20_000)
schedule = load_schedule({str(file)!r}, network)
{mahimahi_too}
with NetnsBackend(network) as backend, Probers(backend) as probers, Player(backend, schedule) as player:
    windows = stream(backend, probers, player, [{STEP_SECONDS} * step for step in range({steps} + 1)])
    backend.check_readback()
    return [windows, player.events]
""")
    found = arrived_bps(windows)
    asked = [rate * 1e6 * 1448 / 1514 for rate in rates]
    correlation = statistics.correlation(found, asked)
    print("sum", sum(found) / sum(asked))
    print("correlation", correlation)
    print("lateness", lateness(events))
    assert sum(found) == pytest.approx(sum(asked), rel=0.03)
    assert correlation > 0.95
    assert statistics.correlation(found, [*asked[1:], asked[0]]) < 0.9  # one step late would show
    assert len(events) == steps if name.endswith(".csv") else len(events) >= steps
    assert lateness(events) <= LATENCY_SECONDS


# -- delay and loss


@pytest.mark.parametrize("before", ["", "delay_us=5_000"])
def test_delay_and_loss_come_and_go(world, before):
    """Also where nothing was delayed before, and also long after the schedule has ended."""
    trips, events = world(f"""{LIVE}
network = net(2, "50mbit", "nic", {before})
a, b = network.nodes
with NetnsBackend(network) as backend, Probers(backend) as probers:
    trips = pinged(probers, [(a, b)], 100)
    events = play(backend, change(0.0, delay_us=25_000, loss=0.1))
    time.sleep(0.3)
    backend.check_readback()
    trips += pinged(probers, [(a, b)], 400)
    events += play(backend, change(0.0, loss=0.0, loss_burst=None), change(0.1, delay_us=10_000))
    time.sleep(0.3)
    backend.check_readback()
    trips += pinged(probers, [(a, b)], 100)
    return [trips, events]
""")
    print("lateness", lateness(events))
    lost = [each.count(None) / len(each) for each in trips]
    medians = [statistics.median(time for time in each if time is not None) / 1000 for each in trips]
    assert lost[0] == lost[2] == 0
    assert 0.12 < lost[1] < 0.26  # both ways: 1 - 0.9 ** 2 = 0.19, chance alone spreads it by 0.02
    assert medians[0] == pytest.approx(10 if before else 0, abs=1.5)
    assert medians[1] == pytest.approx(50, abs=2)
    assert medians[2] == pytest.approx(20, abs=1.5)
    assert lateness(events) <= (LATENCY_SECONDS if before else 1.0)  # the relay has to start first


def test_a_loss_that_comes_meets_every_packet_on_its_own(world):
    """Super-packets, of which a lossless link makes use, would get lost whole."""
    segments = world(f"""{LIVE}
def most():
    return [json.loads(sh(f"ip -n {{node.name}} -j -d link show eth0"))[0]["gso_max_segs"] for node in network.nodes]

network = net(2, "1gbit", "nic")
with NetnsBackend(network) as backend:
    found = [most()]
    play(backend, change(0.0, nodes=(0,), loss=0.01))
    found.append(most())
    play(backend, change(0.0, nodes=(0,), loss=0.0, loss_burst=None))
    return [*found, most()]
""")
    before, lossy, after = segments
    assert before[0] > 1
    assert lossy[0] == 1
    assert after == before


def test_the_readback_never_meets_a_half_changed_network(world):
    """A schedule's thread changes links and faults while another compares."""
    problems, compared = world("""
import threading
network = net(4, "50mbit", "pair")
problems, compared = [], 0
with NetnsBackend(network) as backend:
    def alter():
        try:
            for rate in range(1, 16):
                backend.change(linked(network, rate_bps=10_000_000 * rate, delay_us=1000 * (rate % 2)))
                (backend.link_down if rate % 2 else backend.link_up)(network.nodes[0])
        except EmulationError as error:
            problems.append(str(error))
    thread = threading.Thread(target=alter)
    thread.start()
    while thread.is_alive():
        try:
            backend.check_readback()
        except EmulationError as error:
            problems.append(str(error))
        compared += 1
        time.sleep(0.003)
    return [problems, compared]
""")
    assert problems == []
    assert compared > 10


def test_a_record_says_what_the_delay_line_holds(world):
    """And its counters are there before there is a delay."""
    before, after, path = world("""
network = net(2, "50mbit")
with NetnsBackend(network) as backend:
    path, before = backend.counter(network.nodes[0])["delays"], backend.describe()
    backend.delays = "delay line"
    backend.change(linked(network, rate_bps=50_000_000, delay_us=7_000))
    assert backend.counter(network.nodes[0])["delays"] == path
    return [before, backend.describe(), path]
""")
    assert path
    assert (before["delays"], before["delay_line"]) == (None, [])
    assert after["delays"] == "delay line"
    assert any("7000" in line for line in after["delay_line"])


# -- faults


def test_a_link_goes_down_and_up(world):
    """Its pings are lost meanwhile and no others, and other nodes notice nothing."""
    cut, whole, events = world(f"""{LIVE}
network = net(3, "50mbit", "nic")
n0, n1, n2 = network.nodes
schedule = Schedule(events=(fault(1.0, "down", 1), fault(2.0, "up", 1)))
with NetnsBackend(network) as backend, Probers(backend) as probers, Player(backend, schedule) as player:
    player.start()
    cut, whole = pinged(probers, [(n0, n1), (n2, n0)], 300, 0.01)
    check_isolation(backend.network, backend.at)
    backend.check_readback()
    return [cut, whole, player.events]
""")
    lost = [index for index, time in enumerate(cut) if time is None]
    assert whole.count(None) == 0
    assert lateness(events) <= LATENCY_SECONDS
    assert 100 - 5 <= lost[0] <= 100 + 100 * LATENCY_SECONDS
    assert 200 - 5 <= lost[-1] <= 200 + 100 * LATENCY_SECONDS
    assert lost == list(range(lost[0], lost[-1] + 1))


@pytest.mark.parametrize("link", ["", "delay_us=3_000"])
def test_partitions_and_links_down_decide_who_reaches_whom(world, link):
    """As a matrix: a row per asking node; a node that was cut off before stays so when others are healed."""
    found = world(f"""{LIVE}
network = net(4, "50mbit", "pair", {link})
with NetnsBackend(network) as backend, Probers(backend) as probers:
    def after(*events):
        play(backend, *events)
        return matrix(backend, probers)
    return {{
        "whole": matrix(backend, probers),
        "halves": after(fault(0, "partition", groups=((0, 1), (2, 3)))),
        "other": after(fault(0, "partition", groups=((0, 3), (1,), (2,)))),
        "other, 3 down": after(fault(0, "down", 3)),
        "3 down": after(fault(0, "heal")),
        "healed": after(fault(0, "up", 3)),
    }}
""")
    whole = ["....", "....", "....", "...."]
    assert found == {
        "whole": whole,
        "halves": ["..xx", "..xx", "xx..", "xx.."],
        "other": [".xx.", "x.xx", "xx.x", ".xx."],
        "other, 3 down": [".xxx", "x.xx", "xx.x", "xxx."],
        "3 down": ["...x", "...x", "...x", "xxx."],
        "healed": whole,
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("rule del pref 100 iif sw0 to 10.77.0.2/32 blackhole", "cuts sw0 from 10.77.0.2 is gone"),
        ("rule add pref 100 iif sw2 to 10.77.0.1/32 blackhole", "was not asked for"),
        ("rule add pref 90 iif sw1 to 10.77.0.1/32 lookup main", "was not asked for"),
    ],
)
def test_a_fault_that_is_changed_behind_our_back_is_found(world, line, says):
    """And none is, as long as the faults are those that were asked for."""
    said = world(f"""{LIVE}
network = net(3, "50mbit")
with NetnsBackend(network) as backend:
    backend.link_down(network.nodes[2])
    backend.link_down(network.nodes[1])
    backend.check_readback()
    backend.link_up(network.nodes[2])
    backend.check_readback()
    sh("ip -n switch {line}")
    try:
        backend.check_readback()
    except LinkError as error:
        return str(error)
""")
    assert says in said


COUNTING = """
import sys, time
count = 0
while True:
    count += 1
    with open("/dev/shm/" + sys.argv[1], "w") as file:
        file.write(f"{count:9}")
    time.sleep(0.01)
"""
PROGRAMS = f"""{LIVE}
def count(node):
    with open("/dev/shm/" + node.name) as file:
        return int(file.read() or 0)

def start(backend, node):
    '''A program that counts, as the child of a shell.'''
    argv = ["sh", "-c", '"$0" -S -c "$1" "$2"; true', sys.executable, {COUNTING!r}, node.name]
    process = backend.popen(node, argv)
    wait(lambda: os.path.exists("/dev/shm/" + node.name))
    return process

def progress(nodes):
    '''Whether each node's program gets on, within two seconds: a busy machine may leave one out for one.'''
    before, deadline = [count(node) for node in nodes], time.monotonic() + 2
    while True:
        time.sleep(0.1)
        found = [count(node) > was for node, was in zip(nodes, before, strict=True)]
        if all(found) or time.monotonic() > deadline:
            return found
"""


def test_a_frozen_node_makes_no_progress(world):
    """Neither its program nor that one's children; others do, and it goes on when thawed."""
    found = world(f"""{PROGRAMS}
network = net(3, "50mbit")
nodes = network.nodes
with NetnsBackend(network) as backend:
    programs = [start(backend, node) for node in nodes]
    found = [progress(nodes)]
    for kind in ("freeze", "thaw"):
        play(backend, fault(0, kind, 1))
        time.sleep(0.1)
        found.append(progress(nodes))
    return [*found, [program.poll() for program in programs]]
""")
    assert found == [[True, True, True], [True, False, True], [True, True, True], [None, None, None]]


def test_a_kill_ends_a_nodes_programs_and_no_others(world):
    """Their children too; the links and the one who counts on them stay."""
    found = world(f"""{PROGRAMS}
network = net(3, "50mbit", delay_us=1_000)
nodes = network.nodes
with NetnsBackend(network) as backend:
    programs = [start(backend, node) for node in nodes]
    play(backend, fault(0, "kill", 1))
    wait(lambda: programs[1].poll() is not None)
    time.sleep(0.1)
    backend.check_readback()
    return [progress(nodes), [program.poll() for program in programs]]
""")
    assert found == [[True, False, True], [None, -9, None]]


def test_a_kill_finds_a_program_that_has_just_been_started(world):
    """As a schedule may want it at 0 s: it is on its node from its first moment on."""
    statuses = world(f"""{LIVE}
statuses = []
with NetnsBackend(net(2)) as backend:
    node = backend.network.nodes[0]
    for _ in range(40):
        program = backend.popen(node, ["sleep", "30"])
        backend.kill(node)
        wait(lambda: program.poll() is not None, 5)
        statuses.append(program.returncode)
return statuses
""")
    assert statuses == [-9] * 40


# -- errors


@pytest.mark.parametrize(
    ("accounting", "what", "says"),
    [
        ("pair", "tc -n n0 qdisc del dev eth0 root", "class replace"),
        ("nic", "ip netns del n1", "n1"),
    ],
)
def test_a_change_that_the_kernel_refuses_ends_the_schedule(world, accounting, what, says):
    """Whoever asks hears of it, and no later event is played."""
    said, count, finished = world(f"""{LIVE}
network = net(2, "40mbit", "{accounting}")
with NetnsBackend(network) as backend:
    player = Player(backend, Schedule(events=(
        change(0.0, rate_bps=30_000_000), change(0.5, rate_bps=20_000_000), change(0.8, rate_bps=10_000_000))))
    player.start()
    wait(lambda: player.events)
    player.check()
    sh({what!r})
    wait(lambda: player.finished)
    said = []
    for ask in (player.check, player.close):
        try:
            ask()
        except EmulationError as error:
            said.append(str(error))
    return [said, len(player.events), player.finished]
""")
    assert len(said) == 2
    assert said[0] == said[1]
    assert "the schedule stopped at 0.5 s (all links: bw 20mbit)" in said[0]
    assert says in said[0]
    assert count == 1
    assert finished
