"""An averaging whose measurement broke is timed again, a bounded number of times, and never counted."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.driver.comparison import ComparisonRun
from testbed.driver.links import Meanwhile
from testbed.driver.results import ArmResult
from testbed.records import RankSync
from tests.runs.spent import SPENT

BROKEN = "the delay line was late"


@pytest.fixture
def timed():
    """Times the averagings of an arm; each event's problem, its seconds (1 is the closed form), or None, as they come,
    the last one over and over."""

    def run(
        problems: list[str | float | None], *, thrifty: bool = False, known: dict | None = None
    ) -> tuple[ArmResult, int]:
        asked = iter(problems)
        count = 0

        def ask(_kind: type, _name: str, fraction: float):
            nonlocal count
            count += 1
            problem = next(asked, problems[-1])
            said = [problem] if isinstance(problem, str) else []
            seconds = problem if isinstance(problem, float) else 1.0
            spent = replace(SPENT, problems=tuple(said))
            return [RankSync(seconds=seconds, spent=spent)] * 2

        comparison: Any = object.__new__(ComparisonRun)
        network = SimpleNamespace(longest_round_trip_us=0)
        comparison.settings = SimpleNamespace(thrifty=thrifty, accounting="pair", network=network)
        comparison.ranks = SimpleNamespace(ask=ask)
        comparison.links = SimpleNamespace(
            pair_goodput_bps=lambda _: 1e6, closed_form_seconds=lambda *_: 1.0, chancy=False
        )
        comparison.report = lambda *_: None
        comparison._synced = known if known is not None else {}
        plan: Any = SimpleNamespace(sync_seconds=lambda _: 1.0, sync_message_bytes=8, modelled_goodput_bps=None)
        arm: Any = SimpleNamespace(name="latent", sync="average", link="bw")
        result = ArmResult(arm=arm, link="shaped", plan=plan)
        comparison._time_sync(result, Meanwhile)
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


def test_one_that_took_too_long_is_timed_again_or_suspect(timed):
    """40 % beyond the closed form, then as it says; 14 % beyond it counts, and is said to be suspect."""
    result, count = timed([1.4, 1.0, 1.01])
    assert (count, [sync.seconds for sync in result.syncs]) == (3, [1.0, 1.01])
    result, count = timed([1.14, 1.14])
    assert (count, [sync.problems for sync in result.syncs]) == (2, [[], []])
    assert all("14% more than the closed form" in sync.suspect[0] for sync in result.syncs)
    result, _ = timed([1.05, 1.05])
    assert [sync.suspect for sync in result.syncs] == [[], []]
