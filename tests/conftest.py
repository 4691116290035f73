"""What all tests share."""

import fcntl
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from xdist.scheduler import LoadScopeScheduling

import tests.turns
from testbed.driver.rank import SELDOM
from tests.again import deferrable
from tests.resume import Resume
from tests.runs.tiny import PRESET, TARGET, run_testbed
from tests.sweep.tiny import grid, sweep_till_done

if "PYTEST_DISABLE_PLUGIN_AUTOLOAD" not in os.environ:  # as it is in suites within the suite, which have no such test
    import hypothesis

    hypothesis.settings.register_profile("suite", deadline=None)  # how long something takes is no test here
    hypothesis.settings.load_profile("suite")
gc.set_threshold(SELDOM)  # as `testbed` does: among what a suite imports there is nothing to collect


def pytest_collection_finish() -> None:
    """What has been imported and collected stays."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As in a run: one thread per rank."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can write to, and reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


class Make(Protocol):
    """What the fixture `once` gives."""

    def __call__(
        self, name: str, make: Callable[[Path], subprocess.CompletedProcess[str]], statuses: Container[int] = (0,)
    ) -> Path: ...


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`once(name, make)`: the folder that `make` fills with what a run leaves, made by the first worker that needs it,
    while others wait; what the run said is in stdout.txt. Where it ends with another status than these, the next to
    need it tries again."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def get(
        name: str, make: Callable[[Path], subprocess.CompletedProcess[str]], statuses: Container[int] = (0,)
    ) -> Path:
        place = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (place / "stdout.txt").exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                done = make(place)
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                assert done.returncode in statuses, "\n".join([*last, done.stdout[-3000:], done.stderr[-3000:]])
                (place / "stdout.txt").write_text(done.stdout)
        return place

    return get


@pytest.fixture(scope="session")
def composed(once: Make) -> Path:
    """The run directory of `testbed emulate` at 50 Mbit/s per pair, as a user would type it; what it said is in
    stdout.txt, two folders above."""
    order = ("emulate", "--bw", "50mbit", "--nodes", "2", "--preset", PRESET, "--target", TARGET, "--share")
    return once("composed", lambda place: run_testbed(place, *order, "--name", "run")) / "runs" / "run"


@pytest.fixture(scope="session")
def swept(once: Make) -> Path:
    """The folder in which a sweep was typed, and done."""

    def sweep(place: Path) -> subprocess.CompletedProcess[str]:
        grid(place)
        return sweep_till_done(place)

    return once("swept", sweep)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--resume", metavar="FILE", help="go on with what has not passed yet, by this file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("resume"):
        config.pluginmanager.register(Resume(config))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Tests that share an engine, or what takes long to make, stay in one worker; of others each goes where there is
    room."""
    return _Scheduling(config, log) if config.getvalue("dist") == "loadscope" else None


_TOGETHER = ("tests/runs/test_emulate.py", "tests/sweep/test_swept.py")


class _Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "docker" if file.startswith("tests/docker/") else file if file in _TOGETHER else nodeid


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs real links or real time has one more attempt, alone: a shared machine takes time away in the middle
    of a measurement. The summary lists every test that needed one (RERUN); with `--defer` it has it at the end
    (tests/again.py). Who makes what several share, or waits for it, has the time. What takes long comes first."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/runs/", "tests/sweep/")))
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if tests.turns.needs_a_turn(item):
            if not deferrable(item):
                item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=2))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))  # waiting for its turn counts
        if "once" in fixtures:
            item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Between tests a worker holds no turn."""
    try:
        return (yield)
    finally:
        tests.turns.leave()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Before its fixtures are made, a test that needs a turn waits for it; for a second attempt, alone."""
    if tests.turns.needs_a_turn(item):
        again = getattr(item, "execution_count", 1) > 1
        tests.turns.enter(alone=again or item.get_closest_marker("alone") is not None)
    return (yield)


_attempts: dict[str, list[str]] = {"all": [], "again": []}
AGAIN_SHARE, AGAIN_ALWAYS = 0.02, 2
"""Tests that may need a second attempt: this share of those that ran, or so few."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Which tests ran, and which of them again."""
    if report.when == "setup" or report.outcome == "rerun":
        _attempts["again" if report.outcome == "rerun" else "all"].append(report.nodeid)


def too_many_again(ran: list[str], again: list[str]) -> str:
    """Why a run in which these tests needed a second attempt proves nothing; empty if it does."""
    allowed = max(AGAIN_SHARE * len(set(ran)), AGAIN_ALWAYS)
    if len(set(again)) <= allowed:
        return ""
    return (
        f"{len(set(again))} of {len(set(ran))} tests needed a second attempt, more than {allowed:.0f}: "
        "this machine is too busy to measure on, or they are not true every time"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where too many tests needed a second attempt; their names stand under RERUN."""
    if hasattr(session.config, "workerinput"):
        return
    tests.turns.tidy(session.config)
    if too_many_again(*_attempts.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which tests were tried again, and what was wrong the first time."""
    again = terminalreporter.getreports("rerun")
    if again:
        terminalreporter.section("second attempts")
    for report in again:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = str(crash.message if crash else report.longrepr).strip().splitlines() or [""]
        terminalreporter.line(f"{report.nodeid}: {said[0][:200]}")
    if why := too_many_again(*_attempts.values()):
        terminalreporter.line(why, red=True)
