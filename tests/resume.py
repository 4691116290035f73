"""`make acceptance` goes on where it was ended: what passed with the same sources is not run again.

`--resume FILE` keeps one JSON line per test, as soon as it has passed; a change of any source begins anew.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Resume", "passed", "sources"]

ROOT = Path(__file__).resolve().parents[1]
_SOURCES = (
    *("pyproject.toml", "constraints.txt", "Makefile", "Dockerfile", "docker-compose.yml"),
    *(
        f"{folder}/**/*.{kind}"
        for folder in ("emulation", "experiments", "testbed", "tests")
        for kind in ("py", "toml")
    ),
    *("testbed/**/*.j2", "notebooks/*.py"),
)


def sources(root: Path = ROOT) -> str:
    """A digest of what a test may depend on."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _SOURCES for path in root.glob(pattern)}):
        digest.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def passed(file: Path, digest: str) -> set[str]:
    """Tests that passed with these sources; a line that a killed run left half is none."""
    found = set()
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["sources"] == digest:
            found.add(row["test"])
    return found


class Resume:
    """Leaves out what has passed and, where tests are given out, writes down what passes."""

    def __init__(self, config: pytest.Config) -> None:
        given = getattr(config, "workerinput", None)
        self.file: Path | None = None
        if given is not None:
            self.done = set(given["resume"])
            return
        self.file = Path(config.getoption("resume"))
        self.digest = sources()
        self.done = passed(self.file, self.digest)
        self._unfinished: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Every worker leaves out the same, also one that is started later."""
        node.workerinput["resume"] = sorted(self.done)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = [item for item in items if item.nodeid in self.done]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, test and teardown have passed; of several attempts the last counts."""
        if self.file is None:
            return
        if report.when == "setup":
            self._unfinished.discard(report.nodeid)
        if report.outcome != "passed":
            self._unfinished.add(report.nodeid)
        if report.when == "teardown" and report.nodeid not in self._unfinished:
            self.file.parent.mkdir(exist_ok=True)
            with self.file.open("a") as out:
                out.write(json.dumps({"sources": self.digest, "test": report.nodeid}) + "\n")
