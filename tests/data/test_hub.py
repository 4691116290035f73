"""Sets of the hub, through the loaders that stream them; here they stream files of this machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.config.tree import load_toml, names_in
from testbed.data import prepare as module
from testbed.data.extra import Unreachable
from testbed.data.hub import Hub, HubSet
from testbed.data.prepare import Prepare, prepare
from testbed.errors import UsageError
from tests.data.test_prepare import Dying, Killed
from tests.data.texts import TEXTS, contents, documents, json_lines, parquet

ROOT = Path(__file__).parents[2]


def own_set(folder: Path, builder: str, pattern: str, column: str = "text") -> str:
    """A .toml of a set that one of the loaders' builders reads from files."""
    path = folder / "mine.toml"
    path.write_text(
        f'hub = "{builder}"\ndata_files = "{folder / pattern}"\ncolumn = "{column}"\n'
        'tokenizer = "bytes"\nsource = "written by a test"\n'
    )
    return str(path)


@pytest.mark.parametrize("builder", ["json", "parquet", "text"])
def test_streamed_sets_give_the_corpus_that_files_give(tmp_path, builder):
    """The same documents in the same order, to the last bit."""
    json_lines(tmp_path / "a.jsonl")
    parquet(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    pattern = {"json": "a.jsonl", "parquet": "a.parquet", "text": "a.txt"}[builder]
    streamed, description = prepare(Prepare(name=own_set(tmp_path, builder, pattern), out=str(tmp_path / "1")))
    local, _ = prepare(Prepare(name=str(tmp_path / "a.jsonl"), out=str(tmp_path / "2")))
    assert documents(streamed) == documents(local)
    assert (streamed / "train.bin").read_bytes() == (local / "train.bin").read_bytes()
    assert description["source"]["citation"] == "written by a test"


@pytest.mark.parametrize("builder", ["json", "parquet"])
def test_a_stream_goes_on_where_it_was_killed(tmp_path, monkeypatch, builder):
    """By the loader's own state, over several files; the same bits."""
    for part in range(3):
        texts = TEXTS[part * 40 : part * 40 + 40]
        json_lines(tmp_path / f"{part}.jsonl", texts)
        parquet(tmp_path / f"{part}.parquet", texts)
    name = own_set(tmp_path, builder, "*.jsonl" if builder == "json" else "*.parquet")
    whole, _ = prepare(Prepare(name=name, out=str(tmp_path / "whole")))
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 4)
    read = Hub.read

    def killed(self, position):
        for number, text in enumerate(read(self, position)):
            if number == Dying.after:
                raise Killed
            yield text

    monkeypatch.setattr(Hub, "read", killed)
    deaths = 0
    for Dying.after in (9, 30, 58):
        request = Prepare(name=name, out=str(tmp_path / f"out{Dying.after}"))
        for _ in range(30):
            try:
                folder, _ = prepare(request, commit_tokens=50)
                break
            except Killed:
                deaths += 1
        else:
            pytest.fail("killed every time")
        assert contents(folder) == contents(whole)
    assert deaths > 15


@pytest.mark.parametrize("name", ["fineweb", "c4", "bookcorpus", "pg19"])
def test_sets_are_described(name):
    """As data, with who made them."""
    chosen = load_toml(HubSet, "data", name)
    assert "/" in chosen.hub
    assert chosen.tokenizer == "gpt2"
    assert "arXiv" in chosen.source
    assert name in names_in("data")


@pytest.mark.parametrize("arguments", [["--tokenizer", "bytes"], []], ids=["set", "tokenizer"])
def test_without_a_network_it_says_what_to_type_instead(tmp_path, monkeypatch, capsys, arguments):
    """One sentence, status 1, nothing created, at once."""
    from testbed.cli import main

    def absent(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", absent)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "fineweb", *arguments]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "cannot reach" in said[0]
    assert ("stdlib" in said[0]) or ("--tokenizer bpe" in said[0])
    assert list(tmp_path.iterdir()) == []


def test_a_network_lost_on_the_way_keeps_what_there_is(tmp_path, monkeypatch):
    """And the same command goes on."""
    json_lines(tmp_path / "a.jsonl")
    request = Prepare(name=own_set(tmp_path, "json", "a.jsonl"), out=str(tmp_path / "out"))
    whole, _ = prepare(Prepare(name=request.name, out=str(tmp_path / "whole")))
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 4)
    read = Hub.read

    def lost(self, position):
        from testbed.data.hub import reaching

        for number, text in enumerate(read(self, position)):
            with reaching("json"):
                if number == 50:
                    raise ConnectionError("gone")
            yield text

    monkeypatch.setattr(Hub, "read", lost)
    with pytest.raises(Unreachable, match="gone"):
        prepare(request, commit_tokens=50)
    assert (tmp_path / "out.part" / "journal.json").is_file()
    monkeypatch.undo()
    assert contents(prepare(request)[0]) == contents(whole)


def test_a_column_that_is_not_there_is_refused(tmp_path):
    """With those that are."""
    json_lines(tmp_path / "a.jsonl", column="body")
    with pytest.raises(UsageError, match=r"no column 'text' .*'body'"):
        prepare(Prepare(name=own_set(tmp_path, "json", "a.jsonl"), out=str(tmp_path / "out")))
    assert not list(tmp_path.glob("out*"))
    prepare(Prepare(name=own_set(tmp_path, "json", "a.jsonl"), out=str(tmp_path / "out"), column="body"))


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("datasets", ["c4", "--tokenizer", "bytes"]), ("tokenizers", ["stdlib", "--tokenizer", "bpe"])],
)
def test_a_missing_package_says_how_to_get_it(tmp_path, package, arguments):
    """In an interpreter that does not have it; local bytes need neither."""
    code = (
        f"import sys; sys.modules['{package}'] = None; from testbed.cli import main; "
        "sys.exit(main(['data', 'prepare', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 2
    assert "pip install -e '.[data]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def environment() -> dict[str, str]:
    """Of a user's shell in another folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_local_bytes_need_no_extra_package(tmp_path):
    """Neither of them is imported."""
    name = json_lines(tmp_path / "a.jsonl")
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['tokenizers'] = None; from testbed.cli import main; "
        "sys.exit(main(['data', 'prepare', sys.argv[1], '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] is True
    assert (tmp_path / "corpora" / "a-bytes" / "data.json").is_file()


def test_another_revision_is_another_source():
    """A corpus of one commit does not stand for that of another; one without stays as it was."""
    plain, one, other = (
        Hub(HubSet(hub="somebody/texts", column="text", source="S.", revision=revision), name="x").described
        for revision in (None, "v1", "v2")
    )
    assert one != other
    assert "asked_revision" not in plain
