"""A suite that was ended goes on with what has not passed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.resume import ROOT, passed, sources

SUITE = """
import os, pathlib
import pytest

def test_passes():
    with open("ran", "a") as out:
        out.write("passes ")

def test_needs_a_file():
    with open("ran", "a") as out:
        out.write("needs ")
    assert pathlib.Path("there").exists()

@pytest.mark.skipif(not os.path.exists("there"), reason="not yet")
def test_is_skipped():
    with open("ran", "a") as out:
        out.write("skipped ")

@pytest.fixture
def leaves():
    yield
    assert pathlib.Path("there").exists()

def test_ends_badly(leaves):
    with open("ran", "a") as out:
        out.write("ends ")
"""
CONFTEST = """
import pytest
from tests.resume import Resume

def pytest_addoption(parser):
    parser.addoption("--resume")

def pytest_configure(config):
    config.pluginmanager.register(Resume(config))
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_only_what_passed_is_left_out(workers, tmp_path):
    """Neither what failed, nor what was skipped, nor what failed at its end; with workers too."""
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    ran, plugins = [], ("-p", "xdist", "-p", "no:cacheprovider")
    for _ in range(3):
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *plugins, *workers, "--resume=done.jsonl"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            check=False,
            timeout=280,
        )
        ran.append(set((tmp_path / "ran").read_text().split()) if (tmp_path / "ran").exists() else set())
        (tmp_path / "ran").unlink(missing_ok=True)
        (tmp_path / "there").touch()
    assert ran == [{"passes", "needs", "ends"}, {"needs", "skipped", "ends"}, set()]


def test_a_changed_source_begins_anew(tmp_path):
    """And half a line is no test."""
    for name in ("testbed", "tests"):
        (tmp_path / name).mkdir()
    (tmp_path / "testbed" / "a.py").write_text("1")
    before = sources(tmp_path)
    file = tmp_path / "done.jsonl"
    file.write_text(json.dumps({"sources": before, "test": "a"}) + '\n{"sources": "' + before)
    assert passed(file, before) == {"a"}
    (tmp_path / "testbed" / "a.py").write_text("2")
    assert passed(file, sources(tmp_path)) == set()
    shutil.move(tmp_path / "testbed" / "a.py", tmp_path / "tests" / "a.py")
    (tmp_path / "tests" / "a.py").write_text("1")
    assert sources(tmp_path) != before
    assert passed(Path("nowhere"), before) == set()
