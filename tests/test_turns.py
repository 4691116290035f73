"""Who may run beside whom, and how often a test may be tried again."""

import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import too_many_again

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time
from tests import turns
turns.enter(alone=sys.argv[1] == "alone")
print("in", flush=True)
sys.stdin.readline()
turns.leave()
print("out", flush=True)
sys.stdin.readline()
"""


class Holder:
    """A process that takes a turn and keeps it until it is told."""

    def __init__(self, kind: str, place: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, kind],
            env={"PYTHONPATH": str(ROOT), "TMPDIR": str(place), "PYTEST_XDIST_TESTRUNUID": "one"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout

    def leaves(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.said.readline() == "out\n"

    def waits(self, seconds: float = 1.0) -> bool:
        """Whether it still has no turn."""
        return not select.select([self.said], [], [], seconds)[0]


@pytest.fixture
def holder(tmp_path):
    made = []

    def make(kind):
        made.append(Holder(kind, tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.communicate()


def test_many_share_and_one_is_alone(holder):
    """Side by side; whoever is alone waits for all, and keeps later ones waiting."""
    first, second = holder("shared"), holder("shared")
    assert first.said.readline() == second.said.readline() == "in\n"
    alone = holder("alone")
    assert alone.waits(3)
    late = holder("shared")
    assert late.waits(3)
    first.leaves()
    assert alone.waits()
    second.leaves()
    assert alone.said.readline() == "in\n"
    assert late.waits()
    alone.leaves()
    assert late.said.readline() == "in\n"


def test_a_turn_ends_with_its_process(holder):
    """However it ends."""
    killed = holder("alone")
    assert killed.said.readline() == "in\n"
    killed.process.kill()
    begun = time.monotonic()
    assert holder("alone").said.readline() == "in\n"
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(("ran", "again", "fails"), [(400, 20, False), (400, 21, True), (10, 2, False), (10, 3, True)])
def test_too_many_second_attempts_fail_the_run(ran, again, fails):
    """More than 5 % of the tests, or more than two of a few; a test counts once."""
    names = [f"test_{number}" for number in range(ran)]
    assert bool(too_many_again(names, 2 * names[:again])) == fails
