"""What all tests share."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What measures real time runs alone, and has two more attempts: a shared machine takes time away in the middle of
    a measurement. The summary lists every test that needed one (RERUN). Who comes first makes what several share, and
    has the time for it."""
    for item in items:
        if item.get_closest_marker("world"):
            item.add_marker(pytest.mark.alone)
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=5))
        if {"composed", "swept"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(900))
