"""Schedules: what they hold, how they unroll, how files become them, and every refusal."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.errors import UsageError
from emulation.spec.events import QUICK_TOTAL_BPS
from emulation.spec.network import SMALLEST_RATE_BPS, Link, Network, star
from emulation.spec.schedule import Change, Fault, Schedule, load_schedule
from emulation.spec.traces import read_mahimahi
from tests.emulation.conftest import ROOT

ASYMMETRIC = Link(
    rate_bps=20_000_000, rate_down_bps=300_000_000, delay_us=10_000, jitter_us=1000, loss=0.01, loss_burst=3
)


def nic(n: int = 4, link: Link = ASYMMETRIC) -> Network:
    return star(n, link, "nic")


def pair(n: int = 4) -> Network:
    return star(n, Link(rate_bps=100_000_000, delay_us=10_000), "pair")


def bw(at: float, rate: int = 10_000_000, **more) -> Change:
    return Change(at_seconds=at, settings={"rate_bps": rate}, **more)


def settings_of(event: Change | Fault) -> Mapping[str, Any]:
    assert isinstance(event, Change)
    return event.settings


@pytest.fixture
def load(tmp_path):
    """Write files, then load the first."""

    def go(network: Network, **files: str) -> Schedule:
        paths = []
        for name, text in files.items():
            stem, _, suffix = name.rpartition("_")
            paths.append(tmp_path / f"{stem}.{suffix}")
            paths[-1].write_text(text, encoding="utf-8")
        return load_schedule(paths[0], network)

    return go


# Changes


def test_a_change_alters_only_its_links():
    changed = bw(0, nodes=(1,)).apply(nic())
    assert [changed.link_of(node).rate_bps for node in changed.nodes] == [
        20_000_000,
        10_000_000,
        20_000_000,
        20_000_000,
    ]
    changed = bw(0, pairs=((0, 1),)).apply(pair())
    nodes = changed.nodes
    assert changed.path(nodes[0], nodes[1]).rate_bps == 10_000_000
    assert changed.path(nodes[1], nodes[0]).rate_bps == 100_000_000


def test_a_rate_up_alone_keeps_a_rate_down_of_its_own():
    link = bw(0).apply(nic()).link
    assert (link.rate_bps, link.rate_down_bps) == (10_000_000, 300_000_000)


def test_no_delay_ends_jitter_and_no_loss_ends_its_runs():
    link = Change(at_seconds=0, settings={"delay_us": 0, "loss": 0.0}).apply(nic()).link
    assert (link.delay_us, link.jitter_us, link.loss, link.loss_burst) == (0, 0, 0, None)


def test_a_changes_settings_cannot_be_altered():
    given_settings = {"rate_bps": 10_000_000}
    change = Change(at_seconds=0, settings=given_settings)
    given_settings["rate_bps"] = 1
    assert change.settings == {"rate_bps": 10_000_000}
    with pytest.raises(TypeError):
        change.settings["rate_bps"] = 1  # type: ignore[index]
    assert hash(change) == hash(bw(0))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: bw(-1), "allowed are 0 s"),
        (lambda: bw(math.nan), "allowed are 0 s"),
        (lambda: Change(at_seconds=0, settings={}), "without a setting"),
        (lambda: Change(at_seconds=0, settings={"rate": 1}), "no 'rate'"),  # pyrefly: ignore
        (lambda: bw(0, nodes=()), "no link"),
        (lambda: bw(0, pairs=()), "no link"),
        (lambda: Fault(at_seconds=0, kind="explode", nodes=(0,)), "'explode' is unknown"),  # type: ignore[arg-type]
        (lambda: Fault(at_seconds=0, kind="down"), "names no node"),
        (lambda: Fault(at_seconds=0, kind="heal", nodes=(0,)), "leave nodes out"),
        (lambda: Fault(at_seconds=0, kind="down", nodes=(0,), groups=((0,), (1,))), "only partition has groups"),
        (lambda: Fault(at_seconds=0, kind="partition", groups=((0, 1),)), "at least two groups"),
        (lambda: Fault(at_seconds=0, kind="partition", groups=((0, 1), ())), "at least two groups"),
        (lambda: Schedule(events=(bw(2), bw(1))), "sort them"),
        (lambda: Schedule(events=(bw(2),), repeat_seconds=2), "does not fit"),
        (lambda: Schedule(events=(bw(0),), repeat_seconds=0), "allowed are 0.001 s"),
        (lambda: Schedule(events=(bw(0),) * 1_000_001), "at most 1000000"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


# Unrolling


@given(
    st.lists(st.integers(0, 99), max_size=5).map(sorted),
    st.lists(st.integers(0, 49), min_size=1, max_size=3).map(sorted),
    st.integers(0, 400),
)
def test_repetitions_unroll_in_order_and_completely(once, again, until):
    schedule = Schedule(
        events=tuple(bw(at) for at in once),
        traces=(Schedule(events=tuple(bw(at, nodes=(0,)) for at in again), repeat_seconds=50),),
    )
    seen = [event.at_seconds for event in schedule.events_until(until)]
    expected = once + [at + 50 * number for number in range(9) for at in again]
    assert seen == sorted(at for at in expected if at < until)


def test_an_endless_schedule_is_unrolled_lazily():
    schedule = Schedule(events=(bw(0), bw(0.1)), repeat_seconds=0.3)
    times = [event.at_seconds for event in itertools.islice(schedule.events_until(), 6)]
    assert times == [0, 0.1, 0.3, 0.4, 0.6, 0.7]
    assert list(Schedule(repeat_seconds=1).events_until()) == []


def test_events_at_one_time_keep_their_order():
    schedule = Schedule(events=(bw(1, 10_000), bw(1, 20_000)), traces=(Schedule(events=(bw(1, 30_000),)),))
    assert [settings_of(event)["rate_bps"] for event in schedule.events_until()] == [10_000, 20_000, 30_000]


def test_a_description_is_json():
    schedule = Schedule(
        events=(bw(1, nodes=(0, 2)), Fault(at_seconds=2, kind="partition", groups=((0, 1), (2, 3)))),
        traces=(Schedule(events=(bw(0, pairs=((0, 1),)),), repeat_seconds=3),),
    )
    told = json.loads(json.dumps(schedule.describe()))
    assert [event["what"] for event in told] == ["nodes 0, 2: bw 10mbit", "partition 0, 1 | 2, 3", "0->1: bw 10mbit"]
    assert told[2]["repeat_seconds"] == 3


# Checking against a network


@pytest.mark.parametrize(
    ("network", "events", "says"),
    [
        (nic(), [bw(30, nodes=(4,))], "at 30s: node 4 is not there; the nodes are 0 to 3"),
        (nic(), [bw(0, nodes=(-1,))], "node -1 is not there"),
        (nic(), [bw(0, pairs=((0, 1),))], "accounting 'nic'"),
        (pair(), [bw(0, pairs=((0, 7),))], "node 7"),
        (pair(), [bw(0, pairs=((1, 1),))], "with itself"),
        (pair(), [Change(at_seconds=0, settings={"rate_down_bps": 10_000})], "rate down"),
        (nic(link=Link()), [Change(at_seconds=0, settings={"rate_down_bps": 10_000})], "none up"),
        (nic(), [bw(0, 1)], "cannot be shaped"),
        (nic(link=Link()), [Change(at_seconds=0, settings={"jitter_us": 5})], "jitter varies a delay"),
        (nic(), [Fault(at_seconds=5, kind="kill", nodes=(9,))], "at 5s: node 9"),
        (nic(), [Fault(at_seconds=5, kind="partition", groups=((0,), (1, 2)))], "node 3 is in 0 groups"),
        (nic(), [Fault(at_seconds=5, kind="partition", groups=((0, 1), (1, 2, 3)))], "node 1 is in 2 groups"),
        (nic(), [Fault(at_seconds=5, kind="partition", groups=((0, 1), (2, 3, 4)))], "node 4"),
    ],
)
def test_a_schedule_that_does_not_fit_its_network_is_refused(network, events, says):
    with pytest.raises(UsageError, match=says):
        Schedule(events=tuple(events)).check(network)
    with pytest.raises(UsageError, match=says):
        Schedule(traces=(Schedule(events=tuple(events)),)).check(network)


def test_a_second_round_is_checked_too():
    """Jitter at 1 s is allowed by the network's own delay the first time, and not once that is gone."""
    events = (Change(at_seconds=1, settings={"jitter_us": 5}), Change(at_seconds=2, settings={"delay_us": 0}))
    Schedule(events=events).check(nic())
    with pytest.raises(UsageError, match="jitter"):
        Schedule(events=events, repeat_seconds=3).check(nic())


def test_the_smallest_value_of_a_long_trace_is_checked():
    rates = [1_000_000 + number for number in range(5000)]
    Schedule(events=tuple(bw(k, rate) for k, rate in enumerate(rates))).check(nic())
    rates[3210] = 9_999
    with pytest.raises(UsageError, match="at 3210s"):
        Schedule(events=tuple(bw(k, rate) for k, rate in enumerate(rates))).check(nic())


# TOML


def test_a_toml_schedule(load):
    schedule = load(
        nic(),
        s_toml="""
            repeat_every = "60s"
            [[at]]
            time = "30s"
            nodes = [0, 1]
            bw = "10mbit"
            down = "50mbit"
            delay = "20ms"
            jitter = "2ms"
            distribution = "pareto"
            loss = "1%"
            loss_burst = 3
            reorder = "0.5%"
            [[at]]
            time = "0s"
            fault = "partition"
            groups = [[0, 1], [2, 3]]
            [[at]]
            time = "0.5min"
            fault = "heal"
            """,
    )
    assert schedule.repeat_seconds == 60
    first, second, third = schedule.events
    assert first == Fault(at_seconds=0, kind="partition", groups=((0, 1), (2, 3)))
    assert second == Change(
        at_seconds=30,
        nodes=(0, 1),
        settings={
            "rate_bps": 10_000_000,
            "rate_down_bps": 50_000_000,
            "delay_us": 20_000,
            "jitter_us": 2000,
            "distribution": "pareto",
            "loss": 0.01,
            "loss_burst": 3.0,
            "reorder": 0.005,
        },
    )
    assert third == Fault(at_seconds=30, kind="heal")


def test_pairs_in_toml(load):
    schedule = load(pair(), s_toml='[[at]]\ntime = "1s"\npairs = [[0, 1], [1, 0]]\ndelay = "80ms"')
    assert schedule.events[0].pairs == ((0, 1), (1, 0))


def test_traces_in_toml_are_found_beside_it(load):
    schedule = load(
        nic(),
        s_toml="""
            [[at]]
            time = "5s"
            fault = "kill"
            nodes = [3]
            [[trace]]
            file = "t.csv"
            nodes = [1]
            repeat = true
            [[trace]]
            up = "m.up"
            down = "m.down"
            nodes = [2]
            interval = "1s"
            """,
        t_csv="seconds,rate_bps\n0,1000000\n2,2000000\n",
        m_up="1000\n2000\n2000\n",
        m_down="500\n3000\n",
    )
    csv, up, down = schedule.traces
    assert (csv.repeat_seconds, [event.nodes for event in csv.events]) == (4, [(1,), (1,)])
    assert [settings_of(event)["rate_bps"] for event in up.events] == [12_032, 24_064]
    assert [settings_of(event)["rate_down_bps"] for event in down.events] == [12_032, SMALLEST_RATE_BPS, 12_032]
    assert (up.repeat_seconds, down.repeat_seconds) == (2, 3)
    assert [event.at_seconds for event in schedule.events_until(5.5) if isinstance(event, Fault)] == [5]


AT = '[[at]]\ntime = "1s"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no event"),
        ("at = 1", r"two brackets"),
        ("[at]\ntime='1s'", r"two brackets"),
        ("at = [1]", r"two brackets"),
        ("x = ", "not valid TOML"),
        ("x = " + "[" * 100_000, "not valid TOML"),
        ("x = " + "1" * 5000, "not valid TOML"),
        ("every = 1", "unknown key 'every'; allowed are at, trace, repeat_every"),
        ("repeat_every = 60\n" + AT + "bw='1mbit'", "repeat_every: duration 60"),
        ("repeat_every = '1s'\n" + AT + "bw='1mbit'", "does not fit a repetition"),
        ("repeat_every = '1s'\n[[trace]]\nup='m.up'", "there are none"),
        ("[[at]]\nbw='1mbit'", "time is missing"),
        ("[[at]]\ntime=30\nbw='1mbit'", "duration 30"),
        ("[[at]]\ntime='-1s'\nbw='1mbit'", "duration '-1s'"),
        (AT, "neither a fault nor a link setting"),
        (AT + "bw=10", r"s.toml, \[\[at\]\] 1: bw: rate 10 is not a plain number"),
        (AT + "bw='10mbps'", "type 10mbit for bits"),
        (AT + "bwd='10mbit'", "unknown key 'bwd'.*did you mean 'bw'"),
        (AT + "queue='10kB'", "unknown key 'queue'"),
        (AT + "delay=['1ms']", "delay: delay"),
        (AT + "distribution='gauss'", "distribution: 'gauss'"),
        (AT + "loss_burst='3'", "loss_burst: '3'"),
        (AT + "loss_burst=true", "loss_burst: True"),
        (AT + "loss='100%'", "at 1s: a loss of 100%"),
        (AT + "bw='1mbit'\nnodes=0", "nodes = 0 is no list"),
        (AT + "bw='1mbit'\nnodes=['0']", "'0' is no node's number"),
        (AT + "bw='1mbit'\nnodes=[true]", "True is no node's number"),
        (AT + "bw='1mbit'\nnodes=[]", "no link was given"),
        (AT + "bw='1mbit'\nnodes=[8]", "node 8 is not there"),
        (AT + "bw='1mbit'\npairs=[[0,1]]", "accounting 'nic'"),
        (AT + "bw='1mbit'\npairs=[[0,1,2]]", "not two nodes"),
        (AT + "bw='1mbit'\npairs=[0]", "pairs = 0 is no list"),
        (AT + "fault='explode'\nnodes=[0]", "'explode' is unknown; type one of down, up"),
        (AT + "fault=3\nnodes=[0]", "fault 3 is unknown"),
        (AT + "fault='down'", "names no node"),
        (AT + "fault='down'\nnodes=[0]\nbw='1mbit'", "fault and bw were given"),
        (AT + "fault='down'\nnodes=[0]\npairs=[[0,1]]", "fault and pairs were given"),
        (AT + "fault='partition'\ngroups=[0,1]", "groups = 0 is no list"),
        (AT + "groups=[[0],[1]]", 'write fault = "partition"'),
        ("[[trace]]\nnodes=[0]", "no file was named"),
        ("[[trace]]\nfile='t.csv'\nloop=true", r"s.toml, \[\[trace\]\] 1: unknown key 'loop'"),
        ("[[trace]]\nfile='t.csv'\nnodes=[]", "names none"),
        ("[[trace]]\nfile='t.csv'\nrepeat='yes'", "true or false"),
        ("[[trace]]\nfile='t.csv'\ninterval='1s'", "belong to Mahimahi"),
        ("[[trace]]\nfile='t.csv'\nup='m.up'", "belong to Mahimahi"),
        ("[[trace]]\nfile='m.up'", "name Mahimahi traces with up ="),
        ("[[trace]]\nfile=1", "no file name"),
        ("[[trace]]\nfile='none.csv'", "none.csv is no file"),
        ("[[trace]]\nup='none.up'", "none.up is no file"),
        ("[[trace]]\nup='m.up'\nrepeat=true", "always repeats"),
        ("[[trace]]\nup='m.up'\ninterval='10us'", "allowed are 1ms to"),
        ("[[trace]]\nup='m.up'\ninterval=100", "delay 100 is not"),
        ("[[trace]]\nup='bad.up'", "milliseconds"),
    ],
)
def test_what_a_toml_may_not_say(load, text, says):
    with pytest.raises(UsageError, match=says) as refusal:
        load(nic(), s_toml=text, t_csv="seconds,rate_bps\n0,1000000\n1,1000000\n", m_up="10\n20\n", bad_up="x\n")
    assert str(refusal.value).startswith("s.toml")
    assert "\n" not in str(refusal.value)


def test_a_trace_down_has_no_meaning_between_pairs(load):
    for files in (
        {"s_toml": "[[trace]]\ndown='m.down'", "m_down": "5\n"},
        {"m_down": "5\n"},
        {"t_csv": "seconds,rate_bps,rate_down_bps\n0,1000000,1000000\n"},
    ):
        with pytest.raises(UsageError, match="accounting 'pair'"):
            load(pair(), **files)


# CSV


def test_a_csv_trace(load):
    schedule = load(
        nic(),
        t_csv="# a comment\r\nseconds, rate_bps, rate_down_bps, delay_us, loss_percent\r\n"
        "0,1000000,2e6,5000,0\r\n\r\n0.5,0,300000000.4,0,1.5\r\n",
    )
    assert schedule.repeat_seconds is None
    assert [event.at_seconds for event in schedule.events] == [0, 0.5]
    assert settings_of(schedule.events[0]) == {
        "rate_bps": 1_000_000, "rate_down_bps": 2_000_000, "delay_us": 5000, "loss": 0.0,
    }  # fmt: skip
    assert settings_of(schedule.events[1])["rate_bps"] == SMALLEST_RATE_BPS
    assert settings_of(schedule.events[1])["loss"] == pytest.approx(0.015)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**11)), min_size=1, max_size=50))
def test_any_table_of_numbers_is_a_trace(tmp_path_factory, rows):
    rows = sorted(rows)
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text("seconds,rate_bps\n" + "".join(f"{at / 1000},{rate}\n" for at, rate in rows))
    try:
        events = load_schedule(path, nic()).events
    except UsageError as error:  # of what is quick as much can be had as a relay passes
        assert "too quickly" in str(error)  # noqa: PT017
        assert 4 * max(rate for _, rate in rows) > QUICK_TOTAL_BPS
        return
    assert [event.at_seconds for event in events] == [at / 1000 for at, _ in rows]
    assert [settings_of(event)["rate_bps"] for event in events] == [max(rate, SMALLEST_RATE_BPS) for _, rate in rows]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no trace"),
        ("seconds,rate_bps\n", "holds no trace"),
        ("time,rate_bps\n0,1", "line 1: unknown column 'time'; allowed are seconds, rate_bps"),
        ("seconds\n0", "at least one of"),
        ("rate_bps\n1", "needs the column seconds"),
        ("seconds,rate_bps,rate_bps\n0,1,1", "twice"),
        ("seconds,rate_bps\n0,fast", "t.csv, line 2: 'fast' is no number"),
        ("seconds,rate_bps\n# x\n0,-1", "line 3: '-1' is no number of 0 or more"),
        ("seconds,rate_bps\n0,nan", "'nan' is no number"),
        ("seconds,rate_bps\n0,1_000", "'1_000' is no number"),
        ("seconds,rate_bps\n0,", "'' is no number"),
        ("seconds,rate_bps\n0,1,2", "line 2: 3 values for the 2 columns"),
        ("seconds,rate_bps\n1,1\n0,1", "line 3: 0 s comes after 1 s"),
        ("seconds,rate_bps\n1e99,1", "line 2: an event at 1e\\+99 s"),
        ("seconds,rate_bps\n0,1e99", "cannot be shaped"),
        ("seconds,loss_percent\n0,100", "a loss of 100%"),
        ("seconds,delay_us\n0,1e9", "a delay of 1000000000 us"),
    ],
)
def test_what_a_csv_may_not_say(load, text, says):
    with pytest.raises(UsageError, match=says) as refusal:
        load(nic(), t_csv=text)
    assert str(refusal.value).startswith("t.csv")


def test_one_line_cannot_repeat(load):
    with pytest.raises(UsageError, match="one time only"):
        load(nic(), s_toml="[[trace]]\nfile='t.csv'\nrepeat=true", t_csv="seconds,rate_bps\n0,10000\n")


# Mahimahi


def test_deliveries_become_rates(tmp_path):
    """Three packets in the first 100 ms, none in the next, one in the 50 ms that are left."""
    (tmp_path / "m.up").write_text("0\n50\n100\n250\n")
    (schedule,) = read_mahimahi(tmp_path / "m.up", None)
    packet = 1504 * 8
    assert [(event.at_seconds, settings_of(event)["rate_bps"]) for event in schedule.events] == [
        (0, 3 * packet * 10), (0.1, SMALLEST_RATE_BPS), (0.2, packet * 20),
    ]  # fmt: skip
    assert schedule.repeat_seconds == 0.25


def test_a_constant_trace_is_one_event(tmp_path):
    """Mahimahi's usual way to write 12 Mbit/s: a packet every millisecond."""
    (tmp_path / "m.up").write_text("1\n")
    (schedule,) = read_mahimahi(tmp_path / "m.up", None)
    assert (len(schedule), schedule.repeat_seconds) == (1, None)
    assert settings_of(schedule.events[0]) == {"rate_bps": 12_032_000}


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200).map(sorted).filter(lambda times: times[-1] > 0))
def test_no_delivery_is_lost(tmp_path_factory, times):
    """Rate × time over one round is packets × 1504 bytes, but for empty intervals and rounding."""
    path = tmp_path_factory.mktemp("mahimahi") / "m.up"
    path.write_text("\n".join(map(str, times)))
    (schedule,) = read_mahimahi(path, None, interval_us=70_000)
    period = times[-1] / 1000
    edges = [event.at_seconds for event in schedule.events] + [period]
    bits = sum(
        settings_of(event)["rate_bps"] * (end - event.at_seconds)
        for event, end in zip(schedule.events, edges[1:], strict=True)
        if settings_of(event)["rate_bps"] > SMALLEST_RATE_BPS
    )
    assert bits == pytest.approx(len(times) * 1504 * 8, abs=len(edges))


def test_both_siblings_are_used_whichever_is_named(load):
    files = {"m_up": "100\n200\n200\n", "m_down": "100\n100\n200\n"}
    for order in (files, dict(reversed(files.items()))):
        (trace,) = load(nic(), **order).traces
        assert [dict(event.settings) for event in trace.events] == [
            {"rate_bps": 120_320, "rate_down_bps": 240_640}, {"rate_bps": 240_640, "rate_down_bps": 120_320},
        ]  # fmt: skip


def test_one_sibling_is_enough_and_pairs_have_only_up(load):
    (trace,) = load(nic(), m_up="100\n").traces
    assert [dict(event.settings) for event in trace.events] == [{"rate_bps": 120_320}]
    (trace,) = load(pair(), m_up="100\n", m_down="200\n").traces
    assert [dict(event.settings) for event in trace.events] == [{"rate_bps": 120_320}]


def test_a_trace_down_alone_needs_a_rate_up(load):
    load(nic(), m_down="100\n")
    with pytest.raises(UsageError, match="none up"):
        load(nic(link=Link()), n_down="100\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lasts no time"),
        ("0\n0\n", "lasts no time"),
        ("5\n4\n", "4 ms comes after 5 ms"),
        ("5\nx\n", "line 2: 'x' is no whole number of milliseconds"),
        ("1.5\n", "line 1: '1.5'"),
        ("-1\n", "line 1: '-1'"),
        ("999999999999\n", "more than 1000000 events"),
    ],
)
def test_what_a_mahimahi_trace_may_not_say(load, text, says):
    with pytest.raises(UsageError, match=says) as refusal:
        load(nic(), m_up=text)
    assert str(refusal.value).startswith("m.up")


# Files


def test_what_is_no_schedule_file(tmp_path):
    for name, says in (("x.json", "allowed are files"), ("x", "allowed are files"), ("none.toml", "is no file")):
        with pytest.raises(UsageError, match=says):
            load_schedule(tmp_path / name, nic())
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="is no file"):
        load_schedule(tmp_path / "folder.csv", nic())
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        load_schedule(tmp_path / "bytes.csv", nic())
    with (tmp_path / "huge.csv").open("wb") as huge:
        huge.truncate(64 * 2**20 + 1)
    with pytest.raises(UsageError, match="64 MiB"):
        load_schedule(tmp_path / "huge.csv", nic())


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "schedules").iterdir()), ids=lambda path: path.name)
def test_the_examples_load(path: Path):
    schedule = load_schedule(path, nic())
    assert len(schedule) >= 2
    json.dumps(schedule.describe())


@pytest.mark.parametrize("accounting", ["nic", "pair"])
def test_a_link_without_a_rate_cannot_be_given_one(accounting):
    """The kernel could not do it in place; delays and losses it can."""
    network = star(3, Link(delay_us=5_000), accounting)
    Schedule(events=(Change(at_seconds=1, settings={"delay_us": 10_000, "loss": 0.01}),)).check(network)
    with pytest.raises(UsageError, match="at 1s: a link without a rate cannot be given one"):
        Schedule(events=(bw(1, 10_000_000),)).check(network)
    Schedule(events=(bw(1, 10_000_000),)).check(star(3, Link(rate_bps=20_000_000), accounting))


def test_a_quoted_table_is_a_trace(tmp_path):
    """As spreadsheets write it."""
    path = tmp_path / "quoted.csv"
    path.write_text('"seconds","rate_bps"\n"0", "1000000"\n"1.5","2000000"\n')
    events = load_schedule(path, nic()).events
    assert [(event.at_seconds, settings_of(event)["rate_bps"]) for event in events] == [(0, 10**6), (1.5, 2 * 10**6)]


def test_a_trace_without_its_ending_says_what_to_type(tmp_path):
    path = tmp_path / "bus ride.trace"
    path.write_text("5\n12\n")
    with pytest.raises(UsageError, match=r"mv 'bus ride\.trace' 'bus ride\.up'"):
        load_schedule(path, nic())


def test_a_loss_of_everything_names_the_fault(tmp_path):
    path = tmp_path / "dead.csv"
    path.write_text("seconds,loss_percent\n0,100\n")
    with pytest.raises(UsageError, match='fault = "down" in a schedule'):
        load_schedule(path, nic())
