"""What all tests share."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As in a run: one thread per rank."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a world measure real time, which a shared machine takes away in the middle of a measurement: each of
    them has one more attempt. The summary lists every test that needed it (RERUN)."""
    for item in items:
        if item.get_closest_marker("world"):
            item.add_marker(pytest.mark.flaky(reruns=1))
