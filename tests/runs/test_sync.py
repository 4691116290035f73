"""An averaging whose measurement broke is timed again, a bounded number of times, and never counted."""

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.runs.comparison import ArmResult, Comparison

BROKEN = "the delay line was late"


@pytest.fixture
def timed():
    """Times the averagings of an arm; each event's problem, or None, as they come, the last one over and over."""

    def run(problems: list[str | None], *, thrifty: bool = False, known: dict | None = None) -> tuple[ArmResult, int]:
        asked = iter(problems)
        count = 0

        def order(_name: str, fraction: float):
            nonlocal count
            count += 1
            problem = next(asked, problems[-1])
            said = [problem] if problem else []
            return [{"seconds": 1.0, "payload_bytes": 8.0, "wire_tx_bytes": 9, "problems": said}] * 2

        comparison: Any = object.__new__(Comparison)
        comparison.settings = SimpleNamespace(thrifty=thrifty)
        comparison.ranks = SimpleNamespace(order=order)
        comparison.links = SimpleNamespace(pair_goodput_bps=lambda _: 1e6)
        comparison.report = lambda *_: None
        comparison._synced = known if known is not None else {}
        plan: Any = SimpleNamespace(sync_seconds=lambda _: 1.0, sync_message_bytes=8, modelled_goodput_bps=None)
        arm: Any = SimpleNamespace(name="latent", sync="average", link="bw")
        result = ArmResult(arm=arm, link="shaped", plan=plan)
        comparison._time_sync(result)
        return result, count

    return run


def test_a_broken_one_is_timed_again(timed):
    result, count = timed([None, BROKEN, BROKEN, None])
    assert count == 4
    assert [sync.problems for sync in result.syncs] == [[], []]
    assert result.problems == []


def test_one_that_is_always_broken_makes_the_arm_invalid(timed):
    """After six attempts, with the reason."""
    result, count = timed([BROKEN])
    assert count == 6
    assert all(BROKEN in text for text in result.problems)
    assert result.problems


def test_one_that_held_once_is_enough(timed):
    result, count = timed([None, BROKEN])
    assert count == 6
    assert len(result.syncs) == 1
    assert result.problems == []


def test_in_a_sweep_a_broken_one_is_nobody_elses(timed):
    """Arms of one link share what an averaging takes, but not one that broke."""
    known: dict = {}
    broken, _ = timed([BROKEN], thrifty=True, known=known)
    assert broken.problems
    well, count = timed([None], thrifty=True, known=known)
    assert (count, well.problems) == (2, [])
    shared, count = timed([BROKEN], thrifty=True, known=known)
    assert (count, shared.syncs) == (0, well.syncs)
