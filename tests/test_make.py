"""What the Makefile's targets do that no `testbed` command does."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.runs.tiny import environment, marked, run_testbed
from tests.worlds import needs_world

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / ".venv/.installed").exists(), reason="`make setup` was not typed here")


MAKES = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS")
UNMADE = {key: value for key, value in os.environ.items() if key not in MAKES}
"""As typed in a shell, also where `make test` started us."""


def quick() -> list[str]:
    """The arguments of `testbed` that `make quick` types."""
    done = subprocess.run(["make", "-n", "quick"], cwd=ROOT, env=UNMADE, capture_output=True, text=True, check=True)
    program, *arguments = shlex.split(done.stdout.replace("\\\n", " "))
    assert program.endswith("testbed")
    return arguments


def test_quick_is_a_command_that_can_be_carried_out(tmp_path):
    done = run_testbed(tmp_path, *quick(), "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in ("control", "decentralised", "best", "25mbit"):
        assert words in done.stdout


@pytest.mark.world
@pytest.mark.acceptance
@needs_world
def test_quick_shows_what_an_exchange_is_worth(tmp_path):
    """Exact and `best` solve the task on proven links, and no exchange does not; a table, figures, a report."""
    done = run_testbed(tmp_path, *quick(), "--name", "run", "--share")
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout[done.stdout.index("quality after") :].splitlines()
    recall = {row[0]: float(row[3]) for line in table if (row := line.split()) and row[-1] == "yes"}
    assert min(recall["decentralised"], recall["best"]) > 0.9
    assert recall["control"] < 0.5
    assert "void" not in done.stdout
    assert "runs/run/report.html" in done.stdout
    assert len(list((tmp_path / "runs" / "run" / "figures").glob("*.png"))) >= 4


def setup(folder: Path, tools: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make setup` in a folder, where a program of `tools` comes before all others."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(
        ["make", "setup"], cwd=folder, env=UNMADE | path | variables, capture_output=True, text=True, check=False
    )


def test_nothing_is_installed_through_a_link(tmp_path):
    """A .venv that is one belongs to another checkout."""
    other, folder = tmp_path / "other", tmp_path / "checkout"
    (other / "bin").mkdir(parents=True)
    folder.mkdir()
    (folder / ".venv").symlink_to(other)
    done = setup(folder, other)
    assert done.returncode == 2
    assert "is a link" in done.stderr
    assert [path.name for path in other.rglob("*")] == ["bin"]


def test_uv_installs_the_same_pins_where_it_is_there(tmp_path):
    """By what it is asked for: a program of that name, which writes its words down."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tools / "uv").chmod(0o755)
    folder = tmp_path / "checkout"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "pip").write_text("#!/bin/sh\nexit 1\n")
    (folder / ".venv" / "bin" / "pip").chmod(0o755)
    done = setup(folder, tools)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:2] == ["pip", "install"]
    assert asked[asked.index("-c") :] == ["-c", "constraints.txt", "-e", ".[dev]"]
    assert ".venv/bin/python" in asked


SLEEPS = """
import os, time

def test_sleeps():
    open("{}.%d" % os.getpid(), "w").close()
    time.sleep(300)
"""


@pytest.mark.waits
def test_an_interrupt_ends_every_part_of_the_suite(tmp_path):
    """Ctrl-C while tests run in the foreground and beside: the status says so, and no process is left."""
    marker, mark = tmp_path / "sleeps", f"make-test-{os.getpid()}"
    (tmp_path / "test_sleeps.py").write_text(SLEEPS.format(marker))
    (tmp_path / "test_links.py").write_text("import pytest\npytestmark = pytest.mark.world\n" + SLEEPS.format(marker))
    variables = {key: value for key, value in environment(mark).items() if key not in MAKES}
    process = subprocess.Popen(
        ["env", "--default-signal=INT", "make", "test", f"ARGS=--rootdir={tmp_path} {tmp_path}"],
        cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while len(list(tmp_path.glob("sleeps.*"))) < 2:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no test began"
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode in (2, 130, -signal.SIGINT), said
    deadline = time.monotonic() + 15
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == [], said
