"""`testbed data …` as a user types it: what is wrong is one sentence, status 2, and nothing is left behind."""

import json

import pytest

from testbed.cli import main
from tests.data.texts import TEXTS, json_lines, parquet

LINES = '{"text": "one"}\n\n{"text": "two"\n'


@pytest.mark.parametrize(
    ("files", "arguments", "named"),
    [
        ({}, ["fineweeb"], "did you mean 'fineweb'?"),
        ({}, ["nothing.txt"], "'nothing.txt' is neither a corpus nor a file"),
        ({}, ["mine.toml"], "'mine.toml' is neither a corpus nor"),
        ({"mine.toml": 'hub = "a/b"\n'}, ["mine.toml"], "source"),
        ({"mine.toml": 'hub = "a/b"\nsource = ""\nsplitt = ""\n'}, ["mine.toml"], "'splitt'; did you mean 'split'?"),
        ({"a.jsonl": LINES}, ["a.jsonl"], "a.jsonl, line 3: no JSON"),
        ({"a.jsonl": '{"text": "one"}\n[]\n'}, ["a.jsonl"], "a.jsonl, line 2: no field 'text' (fields: none)"),
        ({"a.jsonl": '{"body": "one"}\n'}, ["a.jsonl"], "line 1: no field 'text' (fields: 'body'); --column"),
        ({"a.jsonl": '{"text": 5}\n'}, ["a.jsonl"], "line 1: 'text' is no text but int"),
        ({"a.jsonl": "[" * 100_000 + "\n"}, ["a.jsonl"], "line 1: no JSON"),
        ({"a.jsonl": ""}, ["a.jsonl"], "there is no text in it"),
        ({"a.jsonl": '{"text": ""}\n{"text": null}\n'}, ["a.jsonl"], "there is no text in it"),
        ({"a.txt": "one document only"}, ["a.txt"], "of 1 document none is"),
        ({"a.txt": b"caf\xe9"}, ["a.txt"], "a.txt is no UTF-8 text (byte 3)"),
        ({"a.parquet": b"PAR1 nothing"}, ["a.parquet"], "a.parquet is no parquet file"),
        ({"a/picture.png": b"\x89"}, ["a"], "a holds no text: files that are read end in .json, .jsonl"),
        ({"a.jsonl": None}, ["a.jsonl", "--tokens", "0"], "--tokens '0'"),
        ({"a.jsonl": None}, ["a.jsonl", "--tokens", "lots"], "as in 250000, 20k, 100M or 1.5B"),
        ({"a.jsonl": None}, ["a.jsonl", "--tokenizer", "gpt3"], "type bytes, gpt2 or bpe"),
        ({"a.jsonl": None}, ["a.jsonl", "--vocabulary", "300"], "--vocabulary 300 is for --tokenizer bpe only"),
        ({"a.jsonl": None}, ["a.jsonl", "--tokenizer", "bpe", "--vocabulary", "65537"], "257 to 65536 token ids"),
        ({"a.jsonl": None}, ["a.jsonl", "--tokenizer", "bpe", "--vocabulary", "0"], "257 to 65536 token ids"),
        ({"a.jsonl": None, "b/mine": ""}, ["a.jsonl", "--out", "b"], "b is there already, and no prepared corpus"),
        ({"a.jsonl": None, "b": ""}, ["a.jsonl", "--out", "b"], "b is there already, and no prepared corpus"),
        ({"a.jsonl": None, "b.part/mine": ""}, ["a.jsonl", "--out", "b"], "b.part is in the way, and not ours"),
        ({"a.jsonl": None, "b": ""}, ["a.jsonl", "--out", "b/c"], "b/c.part cannot be made (Not a directory)"),
        ({"a.jsonl": None}, ["a.jsonl", "--out", "."], "--out '.': type the name of a folder"),
        ({}, ["/dev/null"], "/dev/null is neither a file nor a folder"),
        ({"a.jsonl": None}, ["a.jsonl", "--documnt", "file"], "did you mean --document"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, files, arguments, named):
    """What was given stands in it; and what was there before is all that is there after."""
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            json_lines(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", *arguments]) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_column_that_is_not_in_a_parquet_file_is_refused(tmp_path, monkeypatch, capsys):
    """With those that are, and the flag that chooses one."""
    parquet(tmp_path / "a.parquet", column="body")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "a.parquet"]) == 2
    assert "a.parquet has no column 'text' (columns: 'body'); --column chooses another" in capsys.readouterr().err
    assert main(["data", "prepare", "a.parquet", "--column", "body"]) == 0


def test_prepare_and_show_print_what_there_is(tmp_path, monkeypatch, capsys):
    """A table, or JSON; both end with how to train on it or hold all that is known."""
    json_lines(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "a.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert 'corpus = "corpora/a-bytes"' in printed
    assert main(["data", "show", "a-bytes"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["data", "show", "corpora/a-bytes", "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["schema_version"] == 1
    assert sum(split["documents"] for split in description["splits"].values()) == len(TEXTS)


def test_show_refuses_what_is_not_as_it_was_written(tmp_path, monkeypatch, capsys):
    """A wrong checksum names the file; a folder that is not there, the nearest."""
    json_lines(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "a.jsonl"]) == 0
    assert main(["data", "show", "a-bites"]) == 2
    assert "did you mean 'a-bytes'" in capsys.readouterr().err
    with (tmp_path / "corpora/a-bytes/train.bin").open("r+b") as file:
        file.write(b"x")
    assert main(["data", "show", "a-bytes"]) == 2
    assert "train.bin has the wrong checksum" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prepare", "show"])
def test_help_explains_every_flag(capsys, command):
    """No flag without a sentence, no `None`."""
    with pytest.raises(SystemExit) as end:
        main(["data", command, "--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert "None" not in printed
    assert "--json" in printed
