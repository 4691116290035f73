"""What makes a step invalid or suspect, and what does not."""

from dataclasses import replace

import pytest

from testbed.collector.host_load import Fidelity, Pulse, judge

pytestmark = pytest.mark.alone

CALM = Pulse(released=0, late=0, worst_ns=0, steal_ticks=0, ticks=0, pressure_us=0, waiting_ns=0)
AFTER = Pulse(
    released=1000, late=2, worst_ns=3_000_000, steal_ticks=1, ticks=400, pressure_us=100_000, waiting_ns=10_000_000
)


def test_a_quiet_step_is_neither():
    shares, invalid, suspect = judge(CALM, AFTER, 2.0)
    assert (invalid, suspect) == ([], [])
    assert shares == {"late_share": 0.002, "steal_share": 0.0025, "pressure_share": 0.05, "waiting_share": 0.005}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"late": 30}, "packets were more than 1 ms late"),
        ({"steal_ticks": 80}, "other machines"),
        ({"pressure_us": 1_500_000}, "some process waited"),
        ({"waiting_ns": 500_000_000}, "this rank waited"),
    ],
)
def test_each_kind_of_pressure_makes_a_step_suspect(change, says):
    _, invalid, suspect = judge(CALM, replace(AFTER, **change), 2.0)
    assert invalid == []
    assert len(suspect) == 1
    assert says in suspect[0]


@pytest.mark.parametrize("key", ["steal_ticks", "pressure_us", "waiting_ns"])
def test_a_share_of_a_few_milliseconds_means_nothing(key):
    """An averaging of a tiny model; the same share of a second does."""
    short = {"steal_ticks": 280, "pressure_us": 40_000, "waiting_ns": 40_000_000}[key]  # 70, 80 and 80 %
    quiet = replace(CALM, ticks=400)
    assert judge(CALM, replace(quiet, **{key: short}), 0.05)[2] == []
    longer = short if key == "steal_ticks" else 20 * short
    assert len(judge(CALM, replace(quiet, **{key: longer}), 1.0)[2]) == 1


def test_a_late_delay_line_makes_it_invalid():
    _, invalid, _ = judge(CALM, replace(AFTER, late=100), 2.0)
    assert "100 of 1000 packets" in invalid[0]


def test_few_packets_are_judged_too():
    """Of a step that sends little; but a handful is chance."""
    _, invalid, _ = judge(CALM, replace(AFTER, released=20, late=5), 2.0)
    assert "5 of 20 packets" in invalid[0]
    _, invalid, _ = judge(CALM, replace(AFTER, released=20, late=4), 2.0)
    assert invalid == []


@pytest.mark.parametrize(
    ("worst_ms", "seconds", "told"), [(60, 1, True), (40, 0.1, False), (60, 2, False), (300, 2, True)]
)
def test_a_stall_makes_it_invalid(worst_ms, seconds, told):
    """However few packets it held up; and only in the step in which it was."""
    now = replace(AFTER, worst_ns=worst_ms * 10**6)
    _, invalid, _ = judge(CALM, now, seconds)
    assert (f"a packet was {worst_ms} ms late" in "".join(invalid)) is told
    _, invalid, _ = judge(now, replace(now, released=2000), seconds)
    assert invalid == []


def test_what_a_machine_does_not_keep_is_no_reason():
    blank = replace(CALM, pressure_us=None, waiting_ns=None)
    shares, invalid, suspect = judge(blank, replace(AFTER, pressure_us=None, waiting_ns=None), 2.0)
    assert (shares["pressure_share"], invalid, suspect) == (None, [], [])


def test_this_machine_and_the_delay_line_are_read():
    fidelity = Fidelity(lambda: {"released": 9, "late": 2, "worst_ns": 5, "dropped": 7})
    before, now = fidelity.read(), fidelity.read()
    assert now.ticks >= before.ticks > 0
    assert (now.released, now.late, now.worst_ns, now.dropped) == (9, 2, 5, 7)
