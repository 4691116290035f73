"""A result is known by what decides it: settings and, by content, code, data and versions; by no name and no path."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.config import Preset, load_toml
from testbed.config.arms import arm_named
from testbed.config.data import Data
from testbed.data.prepare import Prepare, prepare
from testbed.errors import TestbedError
from testbed.learn.experiment import Cell
from testbed.rundir import identity
from testbed.rundir.identity import check_host, code_sha256, host_content
from testbed.rundir.older import find_older, left_aside
from testbed.sweep.grid import Grid
from testbed.sweep.user_commands import command_cells_of
from tests.codecs.plugged import install
from tests.data.texts import TEXTS, json_lines
from tests.runs.tiny import PRESET

ONE = '''"""A module."""
from pack.other import factor

WIDTH = 3  # a comment

def learn(x):
    """Say something."""
    return x * factor() * WIDTH
'''


@pytest.fixture
def package(tmp_path):
    """The folder of a package of two modules, and its digest."""
    root = tmp_path / "root"
    (root / "pack").mkdir(parents=True)
    (root / "pack" / "__init__.py").write_text("")
    (root / "pack" / "one.py").write_text(ONE)
    (root / "pack" / "other.py").write_text("def factor():\n    return 2\n\ndef unused():\n    return 1\n")

    def digest(pattern: str = "pack/one.py") -> str:
        identity._parsed.cache_clear()
        code_sha256.cache_clear()
        return code_sha256((pattern,), root)

    return root / "pack", digest


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_words_and_places_decide_nothing(package):
    """Comments, docstrings, blank lines, the file's own name, and where what it imports lies."""
    folder, digest = package
    before = digest()
    edit(folder / "one.py", '"""A module."""', '"""Another text."""')
    edit(folder / "one.py", "# a comment", "# another\n\n")
    edit(folder / "one.py", '    """Say something."""\n', "")
    edit(folder / "other.py", "return 1", "return 5")
    assert digest() == before
    (folder / "one.py").rename(folder / "two.py")
    assert digest("pack/two.py") == before
    (folder / "other.py").rename(folder / "moved.py")
    edit(folder / "two.py", "pack.other", "pack.moved")
    assert digest("pack/two.py") == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("one.py", "WIDTH = 3", "WIDTH = 4"),
        ("one.py", "x * factor()", "x + factor()"),
        ("other.py", "return 2", "return 3"),
        ("one.py", "import factor", "import unused as factor"),
    ],
)
def test_code_decides(package, file, old, new):
    """Of the file, and of what it imports of ours."""
    folder, digest = package
    before = digest()
    edit(folder / file, old, new)
    assert digest() != before


RECORDS = {
    f"records.{name}"
    for name in ("arm", "comparison", "environment", "files", "learned", "progress", "quality", "rank", "sweep")
}
"""What results are written down in, which makes none."""


@pytest.mark.parametrize(
    ("entry", "patterns", "other"),
    [
        (
            "testbed.learn.worker",
            identity.LEARNING,
            {
                "intervals",
                "collector.trace",
                "emulation.errors",
                "errors",
                "pace",
                "child",
                "rundir.directory",
                "rundir.identity",
                "targets",
            },
        ),
        (
            "testbed.driver.serve",
            identity.TIMING,
            {"child", "intervals", "errors", "rundir.directory", "rundir.identity"},
        ),
        (
            "testbed.driver.comparison",
            identity.TIMING,
            {
                "child",
                "formats",
                "intervals",
                "commandline",
                "errors",
                "rundir.directory",
                "rundir.identity",
                "rundir.progress",
                "settings.emulate",
                "settings.network_flags",
                "settings.networks",
            },
        ),
    ],
)
def test_every_module_that_decides_is_among_them(entry, patterns, other):
    """Whatever the process that learns, times or drives imports of ours, but for what is named here."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {entry}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    root = Path(identity.__file__).parents[2]
    hashed = {path for pattern in patterns for path in root.glob(pattern)}
    missed = set()
    for name in done.stdout.split():
        path = (root / name.replace(".", "/")).with_suffix(".py")
        if name.startswith(("testbed.", "emulation.")) and path.is_file() and path not in hashed:
            missed.add(name.removeprefix("testbed."))
    assert missed <= other | RECORDS


def cell(corpus_name: str = "stdlib", codec: str = "best") -> Cell:
    preset = load_toml(Preset, "presets", PRESET)
    preset = replace(preset, data=replace(preset.data, corpus=corpus_name))
    return Cell(preset_name="tiny", preset=preset, arm=arm_named(codec), seed=0, nodes=2)


def test_a_corpus_is_known_by_content(tmp_path, monkeypatch):
    """Another text under the same name is another cell; the same text under another name is the same one."""
    first, same, other = (
        prepare(Prepare(name=json_lines(tmp_path / f"{name}.jsonl", texts), out=str(tmp_path / name)))[0]
        for name, texts in (("first", TEXTS), ("same", TEXTS), ("other", [text + "!" for text in TEXTS]))
    )
    assert cell(str(first)).hash == cell(str(same)).hash != cell(str(other)).hash
    before = cell(str(first)).hash
    (tmp_path / "first").rename(tmp_path / "moved")
    (tmp_path / "other").rename(tmp_path / "first")
    assert cell(str(first)).hash != before


@pytest.mark.parametrize("part", ["python", "torch", "numpy", "code"])
def test_versions_and_code_are_part_of_a_cell(monkeypatch, part):
    before = cell().hash
    now = cell().content | {part: "another"}
    monkeypatch.setattr("testbed.learn.experiment.learning_content", lambda *_: now)
    assert cell().hash != before


def test_a_codec_of_a_users_own_is_known_by_its_sources(tmp_path, monkeypatch):
    """Ours are part of the code that decides."""
    code = "from testbed.codecs.exact import Exact\n\nclass Same(Exact):\n    pass\n"
    monkeypatch.syspath_prepend(install(tmp_path, code, same="Same"))
    before = identity.plugged_sha256("codecs", "same")
    assert before is not None
    assert identity.plugged_sha256("codecs", "exact") is None
    (file,) = tmp_path.glob("*.py")
    for text, alike in ((code + "# a comment\n", True), (code.replace("pass", "token_wise = True"), False)):
        file.write_text(text)
        identity._parsed.cache_clear()
        identity.plugged_sha256.cache_clear()
        assert (identity.plugged_sha256("codecs", "same") == before) is alike


def test_a_host_that_is_another_carries_nothing_out():
    here = host_content(Data(), [arm_named("best")])
    check_host(here, {**here})
    with pytest.raises(TestbedError, match=re.escape("other torch (9.9) than the one that the order comes from")):
        check_host(here, {**here, "torch": "9.9"})


def done(folder: Path, wanted: Cell, **content) -> Path:
    """A file of that cell, as another state has left it."""
    file = folder / f"{len(list(folder.iterdir()))}.json"
    file.write_text(json.dumps({"cell": file.stem, "asked": wanted.asked, "content": wanted.content | content}))
    return file


def test_what_another_state_has_made_is_found_and_named(tmp_path):
    """The newest, of the same settings; of other settings nothing."""
    wanted = cell()
    done(tmp_path, wanted, code="old")
    done(tmp_path, wanted, code="new", torch="2.0")
    done(tmp_path, replace(wanted, seed=1), code="old")
    look = {wanted.hash: (tmp_path / "missing.json", wanted.asked, wanted.content)}
    found = find_older(look, tmp_path.glob("*.json"))
    assert (found[wanted.hash].hash, found[wanted.hash].why) == ("1", "code, torch")
    assert left_aside(found).startswith("1 cell is there of another state (code, torch) and left aside: --keep-older")
    there = {wanted.hash: (done(tmp_path, wanted), wanted.asked, wanted.content)}
    assert find_older(there, tmp_path.glob("*.json")) == {}


def test_a_cell_of_before_a_setting_existed_is_found(tmp_path):
    """Where the setting is as it was without it, and not where it is another."""
    wanted = cell()
    before = json.loads(json.dumps(wanted.asked))
    for key in ("registers", "section", "lead", "marks"):
        del before["preset"]["data"][key]
    del before["arm"]["ids"]
    (tmp_path / "old.json").write_text(json.dumps({"cell": "1", "asked": before, "content": wanted.content}))
    look = {wanted.hash: (tmp_path / "missing.json", wanted.asked, wanted.content)}
    assert find_older(look, tmp_path.glob("*.json"))[wanted.hash].hash == "1"
    other = json.loads(json.dumps(wanted.asked))
    other["preset"]["data"]["lead"] = 7
    assert find_older({"x": (tmp_path / "missing.json", other, wanted.content)}, tmp_path.glob("*.json")) == {}


NETWORK = 'name = "mine"\nsource = "Chosen."\naccounting = "nic"\nnodes = 2\n[link]\nrate = "100mbit"\n'


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("net.toml", NETWORK.replace("100", "200")),
        ("trace.csv", "seconds,rate_bps\n0,2000000\n"),
        ("program.py", "print(2)\n"),
        ("sums.txt", "3\n"),
    ],
)
def test_a_cell_of_a_command_is_known_by_what_its_files_say(tmp_path, monkeypatch, file, text):
    """Network, schedule, program and what it is given; the same files elsewhere are the same cell."""
    monkeypatch.chdir(tmp_path)
    files = {"net.toml": NETWORK, "trace.csv": "seconds,rate_bps\n0,1000000\n", "program.py": "print(1)\n"}
    for name, content in (files | {"sums.txt": "1\n"}).items():
        Path(name).write_text(content)
    sweep = Grid(
        title="mine",
        command=("python", "program.py", "sums.txt"),
        settings={"network": "net.toml", "schedule": "trace.csv"},
        grid={"var.x": [1]},
    )
    before = command_cells_of(sweep)[0].hash
    assert command_cells_of(sweep)[0].hash == before
    Path(file).write_text(text)
    assert command_cells_of(sweep)[0].hash != before
