"""A corpus is read only when it is, to the last byte, what was written."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from testbed.config.data import Data, corpus_folder, vocabulary_needed
from testbed.config.model import Model
from testbed.data.integrity import check_data, file_sha256, verify
from testbed.data.prepare import Prepare, prepare
from testbed.data.prepared import open_prepared
from testbed.data.source import open_source
from testbed.errors import UsageError
from tests.data.texts import json_lines


@pytest.fixture
def folder(tmp_path) -> Path:
    return prepare(Prepare(name=json_lines(tmp_path / "a.jsonl"), out=str(tmp_path / "out")))[0]


_TIMES = itertools.count(1)


def overwrite(path: Path, content: bytes) -> None:
    """At a time of its own, however coarse the file system's clock."""
    path.write_bytes(content)
    os.utime(path, (0, next(_TIMES)))


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "train.starts.npy", "validation.starts.npy"])
def test_one_wrong_bit_is_noticed(folder, name):
    """In any file, which is named; unharmed, it opens."""
    verify(folder)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    overwrite(folder / name, bytes(content))
    with pytest.raises(UsageError, match=f"{name} has the wrong checksum"):
        open_prepared(folder)


def test_a_file_cut_short_or_missing_is_noticed(folder):
    """Before it is read."""
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[:-2])
    with pytest.raises(UsageError, match=f"has {len(content) - 2} bytes where {len(content)} were written"):
        open_source(Data(corpus=str(folder)), seed=0, chunks=4)
    (folder / "train.bin").unlink()
    with pytest.raises(UsageError, match=r"train\.bin is missing"):
        open_prepared(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"finished": False}, "is not finished"),
        ({"schema_version": 2}, "schema version 2"),
        ({"tokenizer": {}}, "is damaged"),
        ({"files": {"../a.jsonl": {"bytes": 1, "sha256": ""}}}, "missing"),
    ],
)
def test_a_description_that_says_otherwise_is_refused(folder, change, named):
    """Unfinished, of another version, damaged, or pointing elsewhere."""
    description = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(description | change))
    with pytest.raises(UsageError, match=named):
        open_prepared(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 1}'])
def test_a_damaged_description_is_refused(folder, text):
    """One sentence with its path."""
    (folder / "data.json").write_text(text)
    with pytest.raises(UsageError, match=r"data\.json is damaged"):
        verify(folder)


def test_a_checksum_is_taken_once(folder, monkeypatch):
    """By a process that asks before a run and then opens the corpus; what is written to meanwhile is read again."""
    read = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("testbed.data.integrity.file_sha256", counted)
    data = Data(corpus=str(folder), task="text")
    check_data(data, Model(vocabulary=256, width=8, layers=1, heads=1, kv_heads=1, ffn=8))
    open_source(data, seed=0, chunks=4)
    assert sorted(read) == sorted(json.loads((folder / "data.json").read_text())["files"])
    train = folder / "train.bin"
    overwrite(train, train.read_bytes())
    open_source(data, seed=0, chunks=4)
    assert read[4:] == ["train.bin"]
    overwrite(train, bytes(train.stat().st_size))
    with pytest.raises(UsageError, match=r"train\.bin has the wrong checksum"):
        open_source(data, seed=0, chunks=4)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path, folder):
    """Objects are refused although their checksum is right; in the control, numpy is let, and the trap shuts."""
    path, sprung = folder / "train.starts.npy", tmp_path / "sprung"
    np.save(path, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    description = json.loads((folder / "data.json").read_text())
    description["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / "data.json").write_text(json.dumps(description))
    with pytest.raises(UsageError, match="not what 'testbed data prepare' writes"):
        open_prepared(folder)
    assert not sprung.exists()
    np.load(path, allow_pickle=True)
    assert sprung.exists()


def test_a_corpus_is_found_by_its_name(tmp_path, monkeypatch, folder):
    """In corpora/ of the working folder; a name that is not there names the nearest."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpora").mkdir()
    folder.rename(tmp_path / "corpora" / "letters")
    assert corpus_folder("letters") == Path("corpora/letters")
    assert vocabulary_needed(Data(corpus="letters", task="text")) == 256
    with pytest.raises(UsageError, match="did you mean 'letters'"):
        corpus_folder("leters")


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    """It is there, but holds something else."""
    with pytest.raises(UsageError, match=r"holds no data\.json"):
        open_source(Data(corpus=str(tmp_path)), seed=0, chunks=4)


def test_a_run_can_be_refused_before_it_begins(folder):
    """Vocabulary and every checksum, by a module that pulls in no numpy."""
    model = Model(vocabulary=400, width=8, layers=1, heads=1, kv_heads=1, ffn=8)
    check_data(Data(), model)
    check_data(Data(task="mqar", corpus="nowhere"), model)
    check_data(Data(corpus=str(folder)), model)
    with pytest.raises(UsageError, match="too small"):
        check_data(Data(corpus=str(folder), keys=17), model)
    overwrite(folder / "train.bin", b"x" * (folder / "train.bin").stat().st_size)
    with pytest.raises(UsageError, match="wrong checksum"):
        check_data(Data(corpus=str(folder)), model)
    code = "import sys, testbed.data.integrity; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
