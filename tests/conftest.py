"""What all tests share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


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


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What measures real time runs alone, and has one more attempt: a shared machine takes time away in the middle of
    a measurement. The summary lists every test that needed it (RERUN)."""
    for item in items:
        if item.get_closest_marker("world"):
            item.add_marker(pytest.mark.alone)
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.flaky(reruns=1))
