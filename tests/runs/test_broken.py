"""What is broken is said where it lies, and keeps nobody from the rest."""

import errno
import json
import os
from pathlib import Path

import pytest

from testbed.cli.dispatch import _guarded, main
from testbed.cli.tables import list_runs
from testbed.config import Preset
from testbed.config.tree import read_toml
from testbed.driver import ranks as ranks_module
from testbed.errors import UsageError, in_words
from testbed.records import plain, read_json
from testbed.rundir.directory import read_failed, write_failed
from tests.analysis.synthetic import made_up
from tests.runs.tiny import PRESET

WHOLE = plain(made_up()[0])


def pipe(path: Path) -> None:
    os.mkfifo(path)


def text(content: str | bytes):
    def write(path: Path) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


BROKEN = [
    pytest.param("comparison.json", text(""), id="empty"),
    pytest.param("comparison.json", text(json.dumps(WHOLE)[:400]), id="half"),
    pytest.param("comparison.json", text(b"\xff\xfe{}"), id="no UTF-8"),
    pytest.param("comparison.json", text("[" * 100_000), id="deep"),
    pytest.param("comparison.json", text("[1, 2]"), id="a list"),
    pytest.param("comparison.json", text('{"arms": 7}'), id="another shape"),
    pytest.param("comparison.json", text(json.dumps(WHOLE | {"bandwidth_bps": "fast"})), id="a word for a number"),
    pytest.param("comparison.json", text(json.dumps({**WHOLE, "node": 4})), id="a key too many"),
    pytest.param("comparison.json", pipe, id="a pipe"),
    pytest.param("quality.json", text("{}"), id="no quality"),
    pytest.param("sweep.json", text('{"states": []}'), id="no sweep"),
]


@pytest.mark.parametrize(("name", "write"), BROKEN)
def test_one_broken_run_is_one_line_of_the_list(tmp_path, monkeypatch, capsys, name, write):
    """And the others are listed as ever."""
    monkeypatch.chdir(tmp_path)
    for run in ("bad", "good"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    (tmp_path / "runs/good/comparison.json").write_text(json.dumps(WHOLE))
    write(tmp_path / "runs/bad" / name)
    bad, good = list_runs()
    assert (bad["name"], bad["state"], good["state"]) == ("bad", "broken", "done")
    assert bad["reason"]
    assert main(["runs"]) == 0
    assert "broken" in capsys.readouterr().out
    assert main(["runs", "--state", "broken", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["name"] == "bad"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "no reason was written"), (b"\xffRunFailed: lost\nmore\n", "RunFailed: lost"), (b"x" * 10**6, "xxxx")],
)
def test_a_reason_that_could_not_be_written_is_said_to_be_none(tmp_path, monkeypatch, content, said):
    """As a full disk leaves it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/bad").mkdir(parents=True)
    (tmp_path / "runs/bad/FAILED").write_bytes(content)
    (run,) = list_runs()
    assert run["state"] == "failed"
    assert said in run["reason"]
    assert len(run["reason"]) < 5000


FULL = "/dev/full"


def test_a_full_disk_is_said_with_what_to_do(tmp_path, capsys):
    """By the kernel's own refusal."""

    def fill() -> int:
        with open(FULL, "w") as file:
            file.write("x" * 10**6)
        return 0

    assert _guarded(fill) == 1
    said = capsys.readouterr().err
    assert said.startswith("testbed: No space left on device")
    assert "make room on the disk, and type the same again" in said
    assert in_words(OSError("no number at all")) == "no number at all"
    assert in_words(OSError(errno.EACCES, "Permission denied", "a/file")) == "Permission denied: a/file"


def test_on_a_full_disk_no_empty_reason_is_left(tmp_path):
    """A folder whose files all are full: nothing is written, and nothing half of it."""
    (tmp_path / "FAILED.partial").symlink_to(FULL)
    write_failed(tmp_path, "RunFailed: " + "x" * 10**6)
    assert not (tmp_path / "FAILED").exists()
    write_failed(tmp_path, "RunFailed: lost")
    assert read_failed(tmp_path) == "RunFailed: lost"


def test_a_rank_that_could_not_write_names_the_disk(tmp_path, monkeypatch):
    """What is left of the disk decides; with room nothing is said of it."""
    assert ranks_module._disk_is_full(tmp_path) == ""
    monkeypatch.setattr(ranks_module, "_ROOM_BYTES", 1 << 62)
    assert f"the disk that holds {tmp_path} is full" in ranks_module._disk_is_full(tmp_path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (text("a = " + "[" * 3000 + "]" * 3000), "too deep"),
        (pipe, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.mkdir(), "no regular file"),
        (text("# " + "x" * (5 << 20)), "bytes, and a .toml file can have"),
        (text(b"\xff\xfea"), "not valid TOML"),
    ],
)
def test_a_toml_that_is_none_is_one_sentence(tmp_path, write, said):
    """Whatever its path leads to; never a traceback, and nothing is waited for."""
    write(tmp_path / "a.toml")
    with pytest.raises(UsageError, match=said) as caught:
        read_toml(Preset, tmp_path / "a.toml")
    assert "\n" not in str(caught.value)


def test_a_record_that_is_none_is_one_sentence(tmp_path):
    for number, write in enumerate((text("{"), text("[" * 10**5), text(b"\xff"), pipe)):
        path = tmp_path / f"{number}.json"
        write(path)
        with pytest.raises(UsageError, match=str(path)):
            read_json(path)


@pytest.mark.parametrize("line", ["learning_rate = inf", "learning_rate = nan", "weight_decay = -inf"])
def test_what_is_no_number_is_refused_as_such(tmp_path, line):
    (tmp_path / "p.toml").write_text(f"{line}\n" + Path(PRESET).read_text())
    with pytest.raises(UsageError, match="it must be at least 0 and finite"):
        read_toml(Preset, tmp_path / "p.toml")


def test_the_same_name_twice_at_once_is_refused(tmp_path, monkeypatch):
    """Taken between the check and the run: a usage error, and the other's folder stays as it is."""
    from testbed.driver.emulate import emulate

    class Taken:
        folder = tmp_path / "run"

    Taken.folder.mkdir()
    with pytest.raises(UsageError, match="exists already; choose another"):
        emulate(Taken(), lambda *_: None)  # pyrefly: ignore
    assert list(Taken.folder.iterdir()) == []
