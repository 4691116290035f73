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
    assert alone.waits(1.5)
    late = holder("shared")
    assert late.waits(1.5)
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


@pytest.mark.parametrize(("ran", "again", "fails"), [(400, 8, False), (400, 9, True), (10, 2, False), (10, 3, True)])
def test_too_many_second_attempts_fail_the_run(ran, again, fails):
    """More than 2 % of the tests, or more than two of a few; a test counts once."""
    names = [f"test_{number}" for number in range(ran)]
    assert bool(too_many_again(names, 2 * names[:again])) == fails


FLAKY = """
import time
from pathlib import Path
import pytest

pytestmark = pytest.mark.world

@pytest.mark.parametrize("number", range(4))
def test_steady(number):
    begun = time.time()
    time.sleep(1)
    with open("steady", "a") as out:
        out.write(f"{begun} {time.time()}\\n")

@pytest.mark.parametrize("number", range(COUNT))
def test_flaky(number):
    begun, file = time.time(), Path(f"flaky{number}")
    if not file.exists():
        file.touch()
        raise AssertionError("at first")
    time.sleep(0.5)
    with open("again", "a") as out:
        out.write(f"{begun} {time.time()}\\n")

@pytest.mark.skipif(not Path("worse").exists(), reason="of the last case")
def test_never():
    with open("never", "a") as out:
        out.write("x")
    raise AssertionError("always")
"""


def suite(place: Path, flaky: int, *more: str) -> "subprocess.CompletedProcess[str]":
    """A suite of links with the hooks of this one, on two workers unless `more` says otherwise."""
    (place / "conftest.py").write_text("from tests.conftest import *\ndel one_thread  # needs PyTorch\n")
    (place / "pytest.ini").write_text("[pytest]\nmarkers =\n    world\n    alone\n")
    (place / "test_it.py").write_text(FLAKY.replace("COUNT", str(flaky)))
    plugins = ("-p", "xdist", "-p", "rerunfailures", "-p", "no:cacheprovider")
    order = ("pytest", "-q", "-raR", *plugins, "-n", "2", "--dist", "load", *more, "test_it.py")
    return subprocess.run(
        [sys.executable, "-m", *order],
        cwd=place,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "TMPDIR": str(place),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def intervals(file: Path) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in (line.split() for line in file.read_text().splitlines())]


def test_second_attempts_are_alone_and_few_of_them_pass(tmp_path):
    """The whole way: two tests fail at first, are tried again beside nobody, and are named."""
    done = suite(tmp_path, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    again, steady = intervals(tmp_path / "again"), intervals(tmp_path / "steady")
    assert (len(again), len(steady)) == (2, 4)
    assert any(a < d and c < b for a, b in steady for c, d in steady if (a, b) != (c, d)), "first attempts share"
    everyone = [*steady, *again]
    assert not any(a < d and c < b for a, b in again for c, d in everyone if (a, b) != (c, d))
    assert done.stdout.count("RERUN test_it.py::test_flaky") == 2
    assert done.stdout.count("]: AssertionError: at first") == 2


def test_a_run_of_too_many_second_attempts_fails_though_all_pass_in_the_end(tmp_path):
    """Three of eight: status 1, why, and which."""
    done = suite(tmp_path, 3)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 of 8 tests needed a second attempt, more than 2" in done.stdout
    assert done.stdout.count("RERUN test_it.py::test_flaky") == 3


def test_nobody_has_a_third_attempt(tmp_path):
    (tmp_path / "worse").touch()
    done = suite(tmp_path, 0)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / "never").read_text() == "xx"


def test_second_attempts_may_be_left_to_the_end(tmp_path):
    """Named and counted in the first part, run in the second, where a failure is one; nothing else runs there."""
    (tmp_path / "worse").touch()
    again, plugin = tmp_path / "again.txt", ("-p", "tests.again")
    first = suite(tmp_path, 1, *plugin, "--defer", str(again), "-m", "world")
    assert first.returncode == 0, first.stdout + first.stderr
    assert {"4 passed", "2 rerun"} <= set(first.stdout.splitlines()[-1].split(" in ")[0].split(", "))
    assert "test_it.py::test_flaky[0]: AssertionError: at first" in first.stdout
    assert sorted(again.read_text().splitlines()) == ["test_it.py::test_flaky[0]", "test_it.py::test_never"]
    second = suite(tmp_path, 1, *plugin, "--deferred", str(again), "-m", "alone", "-n", "0")
    assert second.returncode == 1, second.stdout + second.stderr
    assert {"1 failed", "1 passed", "4 deselected"} <= set(second.stdout.splitlines()[-1].split(" in ")[0].split(", "))
    assert (tmp_path / "never").read_text() == "xx"
    again.write_text("test_it.py::test_gone\n")
    gone = suite(tmp_path, 1, *plugin, "--deferred", str(again), "-m", "alone", "-n", "0")
    assert gone.returncode == 4
    assert "there is no test test_it.py::test_gone" in gone.stderr


def test_too_many_second_attempts_fail_the_run_though_they_are_left_to_the_end(tmp_path):
    done = suite(tmp_path, 3, "-p", "tests.again", "--defer", str(tmp_path / "again.txt"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 of 8 tests needed a second attempt, more than 2" in done.stdout
