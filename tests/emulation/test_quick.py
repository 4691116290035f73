"""Rates that change quickly, or to almost nothing: the relay's own arithmetic, and every second of what arrives.

A token bucket of the kernel's is full again after a change, or owes what a packet took before; the tests' negative
control is one.
"""

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from emulation.errors import EmulationError, UsageError
from emulation.player import AHEAD_SECONDS, Player
from emulation.shaping.delay_line import Relay
from emulation.shaping.rules import Rule, relay_rates, relay_rules, with_room
from emulation.shaping.waiting import Line, Rate
from emulation.spec.events import Change, Fault, Schedule
from emulation.spec.network import Link, star
from emulation.spec.schedule import load_schedule
from tests.emulation.test_player import Recorder, play

MBIT = 1_000_000
LINE = Line(0, "0")


def rate(bps: float, queue_bytes: int = 10**9) -> Rate:
    made = Rate()
    made.set(bps, queue_bytes)
    return made


def left(served) -> list[tuple[int, float]]:
    """Number and milliseconds."""
    return [(number, at / 1e6) for at, (_, number, _) in served]


# -- the arithmetic


def test_packets_leave_when_the_rate_has_had_time_for_their_bytes():
    link = rate(8 * MBIT)  # 1000 bytes a millisecond
    for number in range(3):
        assert link.put(0, (LINE, number, 1000))
    assert left(link.serve(2_500_000)) == [(0, 1.0), (1, 2.0)]
    assert link.soonest() == pytest.approx(3e6, abs=2)
    assert left(link.serve(10_000_000)) == [(2, 3.0)]
    assert link.put(20_000_000, (LINE, 3, 500))  # nothing is saved up while there is nothing to send
    assert left(link.serve(30_000_000)) == [(3, 20.5)]


def test_a_rate_that_changes_while_a_packet_is_served_counts_for_what_is_left():
    link = rate(8 * MBIT)
    link.put(0, (LINE, 0, 1000))
    link.put(0, (LINE, 1, 1000))
    assert link.serve(500_000) == []
    link.set(80_000, 10**9)  # 10 bytes a millisecond: a gap of 10 ms
    assert link.serve(10_500_000) == []
    link.set(8 * MBIT, 10**9)
    assert left(link.serve(12_000_000)) == [(0, 10.9), (1, 11.9)]  # 500 - 100 bytes were left, and nothing is owed


def test_a_full_queue_takes_no_more_and_a_slow_link_keeps_what_it_has():
    link = rate(8 * MBIT, 2500)
    assert [link.put(0, (LINE, number, 1000)) for number in range(4)] == [True, True, False, False]
    link.serve(1_000_000)
    assert link.put(1_000_000, (LINE, 4, 1000))
    assert rate(8 * MBIT, 10).put(0, (LINE, 0, 1000))  # one packet passes whatever the queue


@pytest.mark.parametrize("seed", range(5))
def test_no_bytes_are_won_or_lost_whenever_the_rate_changes_and_the_relay_looks(seed):
    """Against the integral of the rate, in one go."""
    chance, sent, integral = random.Random(seed), 0, 0.0
    link, now = rate(MBIT), 0
    for number in range(2000):
        link.put(0, (LINE, number, 1514))
    bps = MBIT
    while now < 5_000_000_000:
        step = chance.randrange(100_000, 30_000_000)
        now, integral = now + step, integral + bps * step / 8e9
        sent += sum(size for _, (_, _, size) in link.serve(now))
        bps = chance.choice([10_000, 100_000, MBIT, 4 * MBIT])
        link.set(bps, 10**9)
    assert link.queue
    assert integral - 1514 - 10 < sent <= integral + 10


def test_a_shorter_delay_reorders_nothing_before_a_rate_either():
    """Of a node that receives: the second packet leaves the delay no earlier than the first; jitter may do that."""
    relay, line = object.__new__(Relay), Line(0, "0")
    relay.coming, relay.passed, relay.lost, relay.overtaking = [], 0, 0, 0
    rule = Rule(queue=0, pairs=((0, 1),), link=Link())
    line.down = rate(MBIT)
    for number, delay_us in ((1, 40_000), (2, 1_000)):
        line.set(replace(rule, link=Link(delay_us=delay_us)).settings())
        relay.delay(line, number, 1_000_000 * number, 1514)
    assert [packet[1] for _, _, packet, _ in sorted(relay.coming, key=lambda each: each[:2])] == [1, 2]
    assert len({due for due, *_ in relay.coming}) == 1


# -- what is quick, and what it takes


def steps(*pairs: tuple[float, int], repeat: float | None = None, **whose) -> Schedule:
    events = tuple(Change(at_seconds=at, settings={"rate_bps": bps}, **whose) for at, bps in pairs)
    return Schedule(events=events, repeat_seconds=repeat)


@pytest.mark.parametrize(
    ("schedule", "quick"),
    [
        (steps((0, 20 * MBIT), (30, 5 * MBIT)), False),
        (steps((0, 20 * MBIT), (0.5, 40 * MBIT), (1.0, 20 * MBIT)), False),
        (steps((0, 20 * MBIT), (0.1, 40 * MBIT)), True),
        (steps((0, MBIT), (1, 40 * MBIT)), True),  # 1 Mbit in a step: a bucket of five packets is 6 % of it
        (steps((0, 4 * MBIT), (1, 40 * MBIT)), False),
        (steps((0, 20 * MBIT), (10, 10_000), (20, 20 * MBIT)), True),
        (steps((0, 20 * MBIT), (5, 10 * MBIT), repeat=5.1), True),
        (steps((0, 300 * MBIT), (1, 100 * MBIT), (1.2, 300 * MBIT)), False),
        (steps((0, 300 * MBIT), (1, 100 * MBIT), (1.1, 300 * MBIT)), True),
        (steps((0, 20 * MBIT), (5, 10 * MBIT), repeat=10), False),
        (Schedule(events=tuple(Fault(at_seconds=k / 10, kind="heal") for k in range(4))), False),
        (Schedule(events=tuple(Change(at_seconds=k / 10, settings={"delay_us": 1000}) for k in range(4))), False),
        (Schedule(events=(*steps((0, MBIT), nodes=(0,)).events, *steps((0.1, MBIT), nodes=(1,)).events)), False),
        (Schedule(traces=(steps((0, MBIT), (0.1, 2 * MBIT)),)), True),
    ],
)  # fmt: skip
def test_what_is_quick(schedule, quick):
    assert schedule.quick() is quick


def test_the_highest_rates_are_those_of_each_link():
    network = star(3, Link(rate_bps=300 * MBIT), "nic")
    both = Schedule(events=(
        Change(at_seconds=0, settings={"rate_bps": 5 * MBIT, "rate_down_bps": 9 * MBIT}),
        Change(at_seconds=1, nodes=(1,), settings={"rate_bps": 8 * MBIT}),
        Change(at_seconds=2, settings={"rate_bps": MBIT}),
    ))  # fmt: skip
    highest = both.highest(network)
    assert [(link.rate_bps, link.down_bps) for link in map(highest.link_of, highest.nodes)] == [
        (5 * MBIT, 9 * MBIT), (8 * MBIT, 9 * MBIT), (5 * MBIT, 9 * MBIT),
    ]  # fmt: skip
    apart = Schedule(traces=(
        steps((0, 5 * MBIT), (1, 6 * MBIT), nodes=(0,)), steps((0, 7 * MBIT), (1, 4 * MBIT), nodes=(1, 2)),
    ))  # fmt: skip
    highest = apart.highest(network)
    assert [highest.link_of(node).rate_bps for node in highest.nodes] == [6 * MBIT, 7 * MBIT, 7 * MBIT]
    later = Schedule(events=(Change(at_seconds=0.5, settings={"rate_bps": 5 * MBIT}),))
    assert later.highest(network).link_of(network.nodes[0]).rate_bps == 300 * MBIT
    pair = star(2, Link(rate_bps=MBIT), "pair")
    asked = Schedule(events=(Change(at_seconds=1, pairs=((0, 1),), settings={"rate_bps": 2 * MBIT}),))
    a, b = pair.nodes
    assert [asked.highest(pair).path(*each).rate_bps for each in ((a, b), (b, a))] == [2 * MBIT, MBIT]


@pytest.mark.parametrize(
    ("nodes", "rate_mbit", "said"), [(8, 120, "8 nodes that send up to 960mbit"), (17, 1, "17 nodes that")]
)
def test_more_than_the_relay_can_pass_is_refused_beforehand(tmp_path, nodes, rate_mbit, said):
    file = tmp_path / "quick.csv"
    file.write_text(f"seconds,rate_bps\n0,{rate_mbit * MBIT}\n0.1,{rate_mbit * MBIT // 2}\n0.2,{rate_mbit * MBIT}\n")
    with pytest.raises(UsageError, match=said) as refused:
        load_schedule(file, star(nodes, Link(rate_bps=MBIT), "nic"))
    assert "take fewer nodes" in str(refused.value)
    load_schedule(file, star(2, Link(rate_bps=MBIT), "nic"))
    slow = tmp_path / "slow.csv"
    slow.write_text(f"seconds,rate_bps\n0,{rate_mbit * MBIT}\n10,{rate_mbit * MBIT // 2}\n")
    load_schedule(slow, star(nodes, Link(rate_bps=MBIT), "nic"))


def test_each_pair_passes_its_own_rates():
    nic = star(3, Link(rate_bps=10 * MBIT, rate_down_bps=40 * MBIT, delay_us=5000), "nic")
    rules = relay_rules(nic)
    assert [(rule.pairs, rule.up, rule.down) for rule in rules][:2] == [
        (((0, 1),), "n0 up", "n1 down"), (((0, 2),), "n0 up", "n2 down"),
    ]  # fmt: skip
    assert len({rule.queue for rule in rules}) == 6
    rates = {each.name: each for each in relay_rates(nic, nic)}
    assert (rates["n0 up"].rate_bps, rates["n0 down"].rate_bps) == (10 * MBIT, 40 * MBIT)
    assert rates["n0 down"].queue_bytes > rates["n0 up"].queue_bytes
    slower = star(3, Link(rate_bps=MBIT), "nic")
    assert relay_rates(slower, nic)[0].queue_bytes == rates["n0 up"].queue_bytes  # a slow moment shrinks no queue
    pair = star(2, Link(rate_bps=10 * MBIT), "pair")
    assert [(rule.up, rule.down) for rule in relay_rules(pair)] == [("n0->n1", None), ("n1->n0", None)]
    assert relay_rules(star(2, Link(), "nic")) == []
    assert with_room(nic).link.rate_bps == 12_500_000


# -- the player


def recorder() -> Recorder:
    return Recorder(star(2, Link(rate_bps=10 * MBIT), "nic"))


def test_quick_changes_are_told_ahead_and_recorded_at_their_times():
    backend, seen = recorder(), []
    schedule = steps(*((0.1 * k, (2 + k) * MBIT) for k in range(8)))
    with Player(backend, schedule, on_event=lambda event: seen.append((time.monotonic(), event))) as player:
        begun = time.monotonic()
        play(player)
    told = [call for call in backend.calls if call[0] == "change"]
    assert [call[1] for call in told[:8]] == [(2 + k) * MBIT for k in range(8)]
    assert max(call[2] for call in told[:8]) > 0.2e9  # nanoseconds before its time
    assert min(call[2] for call in told[6:8]) > 0
    assert [event["at_seconds"] for event in player.events] == pytest.approx([0.1 * k for k in range(8)])
    for at, event in seen:
        assert at - begun >= event["at_seconds"] - 0.01  # not before it has happened
    assert backend.calls[0] == ("follow", 9 * MBIT)
    assert backend.calls[-2:] == [("change", 9 * MBIT), ("follow", None)]
    assert backend.checks >= 1


@pytest.mark.waits
def test_what_was_told_ahead_does_not_happen_when_playing_ends_before():
    backend = recorder()
    schedule = steps((0, 2 * MBIT), (0.1, 3 * MBIT), (60.0, 4 * MBIT), (60.1, 5 * MBIT))
    with Player(backend, schedule) as player:
        player.start()
        time.sleep(0.3)
    assert backend.calls[-2:] == [("change", 3 * MBIT), ("follow", None)]
    assert len(player.events) == 2
    ahead = steps(*((0.01 + 0.1 * k, (2 + k) * MBIT) for k in range(20)))
    backend = recorder()
    with Player(backend, ahead) as player:
        player.start()
        time.sleep(AHEAD_SECONDS)
    last = backend.calls[-2][1]
    assert last == (1 + len(player.events)) * MBIT  # as the last recorded event left it …
    assert max(call[1] for call in backend.calls if call[0] == "change") > last  # … though more was told


def test_links_that_cannot_stay_as_they_are_are_said():
    backend = recorder()
    schedule = steps((0, 2 * MBIT), (0.1, 3 * MBIT))
    player = Player(backend, schedule)
    play(player)
    backend.refuses = "follow"
    with pytest.raises(EmulationError, match="cannot stay as they are: no follow today"):
        player.close()


def test_a_fault_among_quick_changes_waits_for_its_time():
    backend = recorder()
    quick = steps((0, 2 * MBIT), (0.1, 3 * MBIT), (0.4, 4 * MBIT)).events
    schedule = Schedule(events=(*quick[:2], Fault(at_seconds=0.3, kind="heal"), quick[2]))
    with Player(backend, schedule) as player:
        play(player)
    assert [event["at_seconds"] for event in player.events] == [0, 0.1, 0.3, 0.4]
    assert player.events[2]["applied_seconds"] >= 0.3
    assert [call[0] for call in backend.calls] == ["follow", "change", "change", "heal", "change", "change", "follow"]


# -- on real links

SECONDS = 4
TRAFFIC = """
SEND = '''
import socket, sys, time
to, bps, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
sock, gap = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 1514 * 8 / bps
at = time.monotonic()
end = at + seconds
while at < end:
    sock.sendto(bytes(1472), (to, 5002))
    at += gap
    time.sleep(max(0.0, at - time.monotonic()))
'''

RECEIVE = '''
import json, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
sock.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS: when the kernel had it
sock.bind(("", 5002))
sock.settimeout(0.2)
print("ready", flush=True)
times, end = [], time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    try:
        _, (found,), _, _ = sock.recvmsg(2000, 64)
    except TimeoutError:
        continue
    seconds, nanoseconds = __import__("struct").unpack("qq", found[2])
    times.append(seconds + nanoseconds / 1e9)
print(json.dumps(times), flush=True)
'''

def arrivals(backend, player, bps, seconds):
    '''When each datagram of a flood from n1 to n0 arrives, in seconds of the schedule.'''
    a, b = backend.network.nodes[:2]
    env = lambda node: backend.environment(node) | {"PATH": os.environ["PATH"]}
    receive, send = [sys.executable, "-c", RECEIVE], [sys.executable, "-c", SEND]
    receiver = backend.popen(a, [*receive, str(seconds + 2)], env=env(a), stdout=subprocess.PIPE, text=True)
    assert receiver.stdout.readline().strip() == "ready"
    sender = backend.popen(b, [*send, a.address, str(bps), str(seconds + 1)], env=env(b))
    time.sleep(0.4)
    player.start()
    zero = time.time()
    times = json.loads(receiver.communicate()[0])
    assert sender.wait() == 0
    return [at - zero for at in times]
"""


def per_second(times: list[float]) -> list[float]:
    """Layer-2 bits of each."""
    return [sum(1514 * 8 for at in times if second <= at < second + 1) for second in range(SECONDS)]


def integral(trace: list[tuple[float, int]], begin: float, end: float) -> float:
    """Bits that the file allows."""
    ends = [at for at, _ in trace[1:]] + [1e9]
    return sum(max(0.0, min(end, until) - max(begin, at)) * bps for (at, bps), until in zip(trace, ends, strict=True))


def every(step: float, rates: list[int]) -> list[tuple[float, int]]:
    return [(round(step * k, 6), rates[k % len(rates)]) for k in range(round((SECONDS + 1) / step))]


GAPS = [each for s in range(SECONDS + 1) for each in ((s, 1_400_000), (s + 0.5, 0), (s + 0.6, 1_400_000))]
TRACES = {
    "gaps of 100 ms": GAPS,
    "100 ms at 1 Mbit/s": every(0.1, [500_000, 1_500_000]),
    "10 ms at 10 Mbit/s": every(0.01, [5 * MBIT, 15 * MBIT, 0, 20 * MBIT]),
    "100 ms down to 100 kbit/s": every(0.1, [100_000, 2 * MBIT, 400_000, MBIT, 0]),
}


def write(folder: Path, trace: list[tuple[float, int]]) -> Path:
    file = folder / "trace.csv"
    file.write_text("\n".join(["seconds,rate_bps", *(f"{at:g},{bps}" for at, bps in trace)]))
    return file


def played(
    world, tmp_path: Path, trace: list[tuple[float, int]], accounting: str, *, kernel: bool = False
) -> list[float]:
    """What arrives each second over what the file has there; `kernel`: by its token buckets."""
    file = write(tmp_path, trace)
    by_kernel = (
        "import emulation.spec.events; emulation.spec.events.Schedule.quick = lambda self: False" if kernel else ""
    )
    times, events = world(
        f"""
from emulation.player import Player
from emulation.spec.schedule import load_schedule
{by_kernel}
network = net(2, "30mbit", "{accounting}")
schedule = load_schedule({str(file)!r}, network)
with NetnsBackend(network) as backend, Player(backend, schedule) as player:
    times = arrivals(backend, player, {1.5 * max(bps for _, bps in trace)}, {SECONDS})
    backend.check_readback()
    return [times, player.events]
""",
        prelude=TRAFFIC,
    )
    assert len(events) >= len([at for at, _ in trace if at < SECONDS])
    shares = [found / integral(trace, s, s + 1) for s, found in enumerate(per_second(times))]
    print([round(share, 4) for share in shares])
    return shares


def cases() -> list:
    """All of them; those that show the same once more are left to `make acceptance`."""
    quick = {("gaps of 100 ms", "nic"), ("gaps of 100 ms", "pair"), ("10 ms at 10 Mbit/s", "nic")}
    return [
        pytest.param(name, accounting, marks=[] if (name, accounting) in quick else pytest.mark.acceptance)
        for name in TRACES
        for accounting in ("nic", "pair")
    ]


@pytest.mark.world
@pytest.mark.parametrize(("name", "accounting"), cases())
def test_every_second_carries_what_the_trace_has(world, tmp_path, name, accounting):
    """Within 2 %, or the packets that are on their way when a second begins and ends; the first begins with none."""
    shares = played(world, tmp_path, TRACES[name], accounting)
    packet = [1514 * 8 / integral(TRACES[name], s, s + 1) for s in range(SECONDS)]
    for share, one in list(zip(shares, packet, strict=True))[1:]:
        assert share == pytest.approx(1, abs=max(0.02, 2 * one))


@pytest.mark.world
@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_a_token_bucket_of_the_kernels_could_not(world, tmp_path, accounting):
    """The negative control, and the reason for all this."""
    shares = played(world, tmp_path, GAPS, accounting, kernel=True)
    mean = sum(shares[1:]) / (SECONDS - 1)
    assert mean > 1.05 if accounting == "nic" else mean < 0.7


@pytest.mark.world
def test_delays_losses_and_both_directions_are_kept_and_the_kernel_takes_over_again(world):
    """n1 sends 8 and 2 Mbit/s in turns; n0 receives 1 in the mean: the slower way counts, behind the delay."""
    times, trips, during, after, lost = world(
        """
from emulation.player import Player
from emulation.measure.probe_client import Probers
from emulation.spec.schedule import Change, Schedule
def every(nodes, bps, down):
    return [Change(at_seconds=k / 100, nodes=nodes, settings={"rate_bps": bps[k % 2], "rate_down_bps": down[k % 2]})
            for k in range(600)]
sends = every((1,), [8_000_000, 2_000_000], [9_000_000, 9_000_000])
receives = every((0,), [9_000_000, 9_000_000], [1_500_000, 500_000])
events = sorted(sends + receives, key=lambda event: event.at_seconds)
network = net(2, "10mbit", "nic", delay_us=20_000, loss=0.02)
with NetnsBackend(network) as backend:
    with Player(backend, Schedule(events=tuple(events))) as player:
        times = arrivals(backend, player, 1_400_000, 4)
        during = backend.readback()["delay_line"]
        backend.check_readback()
    backend.check_readback()
    with Probers(backend) as probers:
        a, b = network.nodes
        probers.tell(a, do="ping", to=b.address, count=200, interval=0.01, patience=0.4)
        trips = probers.read(a)["microseconds"]
    from emulation.shaping.delays import DelayCounter
    with DelayCounter(backend.counter(a)["delays"]) as counter:
        lost = counter.read()
    return [times, trips, during, backend.readback()["delay_line"], lost]
""",
        prelude=TRAFFIC,
    )
    bits = [1514 * 8 * len([at for at in times if s <= at < s + 1]) for s in range(1, 4)]
    assert bits == pytest.approx([MBIT] * 3, rel=0.03)
    assert lost["lost"] > 0  # before the slower way, which its own queue keeps busy
    assert lost["dropped"] > 0
    found = sorted(trip for trip in trips if trip is not None)
    assert found[len(found) // 2] == pytest.approx(40_000, abs=2000)
    assert any(line.startswith("rate n0 down") for line in during)
    assert not any(line.startswith("rate") for line in after)


@pytest.mark.world
@pytest.mark.parametrize(
    ("behind", "says"),
    [
        ("sh('tc -n n0 qdisc replace dev eth0 root pfifo')", "kind"),
        ("sh('ip netns exec switch iptables -t mangle -F FORWARD')", "the delay line's rules"),
        ("os.kill(backend.delay_line.pid, 9); time.sleep(0.3)", "relay ended"),
    ],
)
def test_rates_that_are_not_what_was_asked_for_end_playing(world, behind, says):
    """And nothing does as long as they are."""
    said, before = world(f"""
from emulation.player import Player
from emulation.spec.schedule import Change, Schedule
events = tuple(Change(at_seconds=k / 10, settings={{"rate_bps": 5_000_000 + k}}) for k in range(60))
network = net(2, "10mbit", "nic")
with NetnsBackend(network) as backend:
    try:
        with Player(backend, Schedule(events=events)) as player:
            player.start()
            time.sleep(1.2)
            player.check()
            before = len(player.events)
            {behind}
            time.sleep(1.2)
    except EmulationError as error:
        return [str(error), before]
""")
    assert before >= 11
    assert says in said
