"""Second attempts at the end, when nothing else runs: at once, a test that has to be alone keeps all others waiting.

`--defer FILE`: a test of links or deadlines that fails is written there, one line each, and counts as one to be tried
again. `--deferred FILE`: those are among the tests that are alone, and have no further attempt. What shares an engine,
or a comparison that takes a minute to make, is tried again at once (tests/conftest.py).
"""

from collections.abc import Generator
from pathlib import Path

import pytest

import tests.turns

__all__ = ["deferrable", "pytest_addoption", "pytest_collection_modifyitems", "pytest_runtest_makereport"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--defer", metavar="FILE", help="write down what is to be tried again, instead of trying it")
    parser.addoption("--deferred", metavar="FILE", help="with -m alone: also what was written there")


def deferrable(item: pytest.Item) -> bool:
    """Whether its second attempt is left to the end, or this is it."""
    if item.config.getoption("--deferred", None):
        return item.nodeid in _listed(item.config)
    if not item.config.getoption("--defer", None) or item.get_closest_marker("alone"):
        return False
    dear = item.nodeid.startswith("tests/docker/") or "once" in getattr(item, "fixturenames", ())
    return tests.turns.needs_a_turn(item) and not dear


def _listed(config: pytest.Config) -> set[str]:
    return set(Path(config.getoption("--deferred")).read_text(encoding="utf-8").splitlines())


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those of the file are alone; each of them has to be there."""
    if not (file := config.getoption("--deferred")):
        return
    names = _listed(config)
    for item in items:
        if item.nodeid in names:
            item.add_marker(pytest.mark.alone)
    if missing := names - {item.nodeid for item in items}:
        raise pytest.UsageError(f"{file}: there is no test {', '.join(sorted(missing))}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What fails is no failure yet."""
    report = yield
    file = item.config.getoption("--defer")
    if report.failed and file and deferrable(item):
        report.outcome = "rerun"  # pyrefly: ignore[bad-assignment]
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(f"{item.nodeid}\n")
    return report
