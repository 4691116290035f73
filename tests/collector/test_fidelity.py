"""What makes a step invalid or suspect, and what does not."""

from dataclasses import replace

import pytest

from testbed.collector.fidelity import Fidelity, Pulse, judge

CALM = Pulse(releases=0, late=0, steal_ticks=0, ticks=0, pressure_us=0, waiting_ns=0)
AFTER = Pulse(releases=1000, late=2, steal_ticks=1, ticks=400, pressure_us=100_000, waiting_ns=10_000_000)


def test_a_quiet_step_is_neither():
    shares, invalid, suspect = judge(CALM, AFTER, 2.0)
    assert (invalid, suspect) == ([], [])
    assert shares == {"late_share": 0.002, "steal_share": 0.0025, "pressure_share": 0.05, "waiting_share": 0.005}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"late": 30}, "releases were more than 1 ms late"),
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


def test_a_late_delay_line_makes_it_invalid():
    _, invalid, _ = judge(CALM, replace(AFTER, late=100), 2.0)
    assert "100 of 1000 releases" in invalid[0]


def test_what_a_machine_does_not_keep_is_no_reason():
    blank = replace(CALM, pressure_us=None, waiting_ns=None)
    shares, invalid, suspect = judge(blank, replace(AFTER, pressure_us=None, waiting_ns=None), 2.0)
    assert (shares["pressure_share"], invalid, suspect) == (None, [], [])


def test_this_machine_is_read():
    fidelity = Fidelity(lambda: {"releases": 0, "late": 0})
    before, now = fidelity.read(), fidelity.read()
    assert now.ticks >= before.ticks > 0
    assert now.releases == 0
