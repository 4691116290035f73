"""When a time counts, is suspect, or is none at all."""

from dataclasses import replace

import pytest

from testbed.driver.combine import combine_steps
from testbed.driver.validity import Limits, judged, resends
from testbed.records import RankStep
from tests.runs.spent import SPENT

FORM = Limits(closed_form_seconds=1.0)
NIC = Limits(closed_form_seconds=1.0, converging=True)
NONE = Limits()


def words(seconds, limits=FORM, least=0.0, sound=None):
    """Of each, "" (it counts), "suspect" or "invalid"."""
    sound = [True] * len(seconds) if sound is None else sound
    found = judged(seconds, [least] * len(seconds), limits, sound=sound)
    return ["invalid" if why else "suspect" if suspect else "" for why, suspect in found]


@pytest.mark.parametrize(
    ("seconds", "limits", "expected"),
    [
        ([1.0, 1.02, 1.04], FORM, ["", "", ""]),
        ([1.0, 1.0, 1.08], FORM, ["", "", "suspect"]),
        ([1.0, 1.0, 1.35], FORM, ["", "", "invalid"]),
        ([4.5, 1.11, 1.11], FORM, ["invalid", "", ""]),
        ([4.5, 1.0], FORM, ["invalid", ""]),
        ([4.5, 1.0], NONE, ["invalid", ""]),
        ([1.11], FORM, [""]),
        ([1.14], FORM, ["suspect"]),
        ([1.14], NIC, [""]),
        ([1.16], NIC, ["suspect"]),
        ([1.31], NIC, ["invalid"]),
        ([1.56, 1.56, 1.57], FORM, ["invalid"] * 3),
        ([9.0], NONE, [""]),
        ([9.0, 9.1, 9.2], NONE, ["", "", ""]),
    ],
)
def test_a_time_is_held_against_its_siblings_and_the_closed_form(seconds, limits, expected):
    """A step during which a rank stood still, a link at a third of its rate all the time, load; and their absence."""
    assert words(seconds, limits) == expected


def test_nothing_is_faster_than_its_wire():
    """0.92 s where the bytes need 1.11; within the tolerance of a rate it is."""
    assert words([0.92], Limits(closed_form_seconds=1.11), least=1.11) == ["invalid"]
    assert words([1.06], Limits(closed_form_seconds=1.11), least=1.11) == [""]
    assert words([0.92], Limits(), least=0.0) == [""]
    # nor does it make those that are as long as it takes too long
    assert words([0.5, 0.5, 1.11], Limits(), least=1.11) == ["invalid", "invalid", ""]


def test_by_chance_no_step_is_invalid():
    """Links that lose packets."""
    assert words([1.0, 1.0, 3.0], Limits(closed_form_seconds=1.0, chance=True)) == ["", "", "suspect"]


def test_short_steps_differ_by_a_machines_grain():
    """20 ms beside 60: nothing; 20 beside 80: half as much again and more than the grain."""
    assert words([0.02, 0.02, 0.06], NONE) == ["", "", ""]
    assert words([0.02, 0.02, 0.08], NONE) == ["", "", "invalid"]


def test_what_is_wrong_already_is_nobodys_sibling():
    """Two that are broken would make the third one's time look odd."""
    assert words([4.0, 4.0, 1.0], NONE, sound=[False, False, True]) == ["", "", ""]
    assert words([4.0, 4.0, 1.0], NONE) == ["", "", ""]
    assert words([1.0, 1.0, 4.0], NONE, sound=[True, True, False]) == ["", "", "invalid"]


@pytest.mark.parametrize(
    ("resent", "wire", "expected"),
    [
        (0, 1e8, ""),
        (50_000, 1e8, ""),
        (150_000, 1e8, ""),
        (400_000, 1e8, "suspect"),
        (2e6, 1e8, "invalid"),
        (60_000, 1e5, ""),
        (1e6, None, ""),
    ],
)
def test_bytes_that_are_sent_twice_for_no_reason(resent, wire, expected):
    """2 % of the packets are lost by what nobody asked for; a few by a probe that came too early."""
    why, suspect = resends(resent, wire)
    assert ("invalid" if why else "suspect" if suspect else "") == expected


def rank_step(*, resent, wire):
    spent = replace(SPENT, payload_bytes={"ballast": wire}, wire_tx_bytes=wire, resent=resent)
    return RankStep(
        step_seconds=1.0,
        compute_seconds=0.5,
        compute_cpu_seconds=0.1,
        exchange_seconds=0.5,
        sync_seconds=0.0,
        loss_sum=1.0,
        tokens=1,
        exchanges=(),
        spent=spent,
    )


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_bytes_sent_twice_are_a_share_of_the_same_layers(scale):
    """Where two of eight layers are timed, both stand for eight: 2 % remain 2 %."""
    step = combine_steps([rank_step(resent=2_000_000, wire=100_000_000)], scale)
    assert resends(step.resent_bytes, step.wire_tx_bytes)[0]
