"""What all tests share."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

import tests.turns
from tests.runs.tiny import PRESET, TARGET, run_testbed
from tests.sweep.tiny import grid, sweep_till_done


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


@pytest.fixture(scope="session")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of `testbed emulate` at 20 Mbit/s per pair, as a user would type it; what it said is in
    stdout.txt, two folders above. Where it ends in an error, the test's next attempt makes another."""
    place = tmp_path_factory.mktemp("composed")
    order = ("emulate", "--bw", "20mbit", "--nodes", "2", "--preset", PRESET, "--target", TARGET, "--share")
    done = run_testbed(place, *order, "--name", "run")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (place / "stdout.txt").write_text(done.stdout)
    return place / "runs" / "run"


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep, done: the folder it was typed in, and what it said."""
    place = tmp_path_factory.mktemp("sweep")
    grid(place)
    done = sweep_till_done(place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place, done


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Files whose tests share what takes long to make stay in one worker; of others each test goes where there is
    room."""
    return _Scheduling(config, log) if config.getvalue("dist") == "loadscope" else None


class _Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return nodeid if file.startswith("tests/emulation/") else file


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs real links or real time has two more attempts, alone: a shared machine takes time away in the middle
    of a measurement. The summary lists every test that needed one (RERUN). Who comes first makes what several share,
    and has the time for it."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.nodeid.startswith("tests/docker/"):  # one engine, whose containers want both cores
            item.add_marker(pytest.mark.alone)
        if tests.turns.needs_a_turn(item):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=2))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))  # waiting for its turn counts
        if {"composed", "swept"} & fixtures:
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
AGAIN_SHARE, AGAIN_ALWAYS = 0.05, 2
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
    if why := too_many_again(*_attempts.values()):
        terminalreporter.section("second attempts", red=True)
        terminalreporter.line(why)
