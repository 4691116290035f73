"""From texts to a corpus on disk: nothing lost, nothing half-made taken for whole, the same bits when killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.config.data import Data, read_description, unfinished
from testbed.data import prepare as module
from testbed.data.files import Files
from testbed.data.prepare import Prepare, held_out, parse_count, prepare
from testbed.data.source import open_source
from testbed.data.tokens import load_tokenizer
from testbed.errors import UsageError
from tests.data.texts import TEXTS, contents, documents, json_lines, parquet

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """In place of a signal."""


def test_every_document_is_on_one_side_and_whole(tmp_path):
    """Packing round-trips, in order; about one in ten is held out, by its text."""
    folder, description = prepare(Prepare(name=json_lines(tmp_path / "a.jsonl"), out=str(tmp_path / "out")))
    found = documents(folder)
    assert found["train"] == [text for text in TEXTS if not held_out(text)]
    assert found["validation"] == [text for text in TEXTS if held_out(text)]
    assert 5 <= len(found["validation"]) <= 25
    assert description["splits"]["train"]["documents"] == len(found["train"])
    assert sorted(contents(folder)) == [
        "data.json", "train.bin", "train.starts.npy", "validation.bin", "validation.starts.npy",
    ]  # fmt: skip
    assert not unfinished(folder).exists()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=40), min_size=30, max_size=60, unique=True))
def test_any_text_survives(tmp_path_factory, texts):
    """Whatever its characters, but for halves of characters, marks of the byte order and blanks alone."""
    folder = tmp_path_factory.mktemp("any")
    kept = [text.removeprefix("\ufeff") for text in texts]
    kept = [text for text in kept if text.strip()]
    if len({held_out(text) for text in kept}) < 2:
        return
    prepare(Prepare(name=json_lines(folder / "a.jsonl", texts), out=str(folder / "out")))
    found = documents(folder / "out")
    assert found["train"] == [text for text in kept if not held_out(text)]
    assert found["validation"] == [text for text in kept if held_out(text)]


def test_equal_documents_never_stand_on_both_sides(tmp_path):
    """The hash of the text decides, not its place."""
    folder, _ = prepare(Prepare(name=json_lines(tmp_path / "a.jsonl", TEXTS * 3), out=str(tmp_path / "out")))
    found = documents(folder)
    assert not set(found["train"]) & set(found["validation"])


def test_all_kinds_of_files_give_the_same_corpus(tmp_path):
    """JSONL, parquet, a text file by paragraphs, a folder of text files; another column too."""
    lines = json_lines(tmp_path / "a.jsonl")
    columns = parquet(tmp_path / "a.parquet", column="body")
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "many").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "many" / f"{number:03}.txt").write_text(text)
    (tmp_path / "many" / "picture.png").write_bytes(b"\xff\xd8")
    asked = [
        Prepare(name=lines, out=str(tmp_path / "1")),
        Prepare(name=columns, out=str(tmp_path / "2"), column="body"),
        Prepare(name=str(tmp_path / "many"), out=str(tmp_path / "3")),
    ]
    shas = {prepare(each)[1]["sha256"] for each in asked}
    assert len(shas) == 1
    folder, _ = prepare(Prepare(name=str(tmp_path / "a.txt"), out=str(tmp_path / "4"), document="paragraph"))
    found = documents(folder)
    assert sorted(text.rstrip("\n") for split in found.values() for text in split) == sorted(TEXTS)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_killed_after_any_document_it_goes_on_to_the_same_bits(tmp_path, monkeypatch, tokenizer):
    """Here or there, and then again and again until it is whole."""
    name = json_lines(tmp_path / "a.jsonl")
    size = 300 if tokenizer == "bpe" else None
    request = {"name": name, "tokenizer": tokenizer, "vocabulary": size}
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 4)
    whole, _ = prepare(Prepare(**request, out=str(tmp_path / "whole")))
    monkeypatch.setattr(Files, "read", dying(Files.read))
    deaths = 0
    for number in range(1, len(TEXTS), 9 if tokenizer == "bytes" else 40):
        asked = Prepare(**request, out=str(tmp_path / f"out{number}"))
        Dying.after = number if tokenizer == "bytes" else max(number, 10)
        for _ in range(100):
            try:
                folder, _ = prepare(asked, commit_tokens=50)
                break
            except Killed:
                deaths += 1
                assert not Path(asked.out or "").exists()
                Dying.after += 3  # some progress each time
        else:
            pytest.fail("killed every time")
        assert contents(folder) == contents(whole)
    assert deaths > (100 if tokenizer == "bytes" else 20)


class Dying:
    """How many documents are read before the next death."""

    after = 0


def dying(read):
    """`Files.read`, dying in the middle of it unless it began far enough on."""

    def wrapped(self, position):
        for number, text in enumerate(read(self, position)):
            if number == Dying.after and position is None:
                raise Killed
            if number == 7 and position is not None and position["documents"] < len(TEXTS) - 8:
                raise Killed
            yield text

    return wrapped


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    """A real one, by SIGKILL, several times; what it has left behind is never taken for whole."""
    texts = [f"{number} {text}" for number in range(40) for text in TEXTS]
    name = json_lines(tmp_path / "a.jsonl", texts)
    whole, _ = prepare(Prepare(name=name, out=str(tmp_path / "whole")))
    code = (
        "import sys; from testbed.data import prepare as module; module._BATCH_DOCUMENTS = 16; "
        "module.prepare(module.Prepare(name=sys.argv[1], out=sys.argv[2]), commit_tokens=400)"
    )
    out, kills = tmp_path / "out", 0
    for at_least in (500, 1800, 3000):
        child = subprocess.Popen([sys.executable, "-c", code, name, str(out)], cwd=ROOT)
        deadline = time.monotonic() + 60
        while child.poll() is None and counted(out) < at_least and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        assert not out.exists()
        with pytest.raises(UsageError, match="not finished"):
            open_source(Data(corpus=str(out)), seed=0, chunks=4)
    assert kills == 3
    folder, _ = prepare(Prepare(name=name, out=str(out)))
    assert contents(folder) == contents(whole)


def counted(out: Path) -> int:
    """Documents that the journal says are safe."""
    try:
        return sum(json.loads((unfinished(out) / "journal.json").read_text())["documents"].values())
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("moment", ["data.json", "journal.json", "out"])
def test_killed_while_it_gets_its_name(tmp_path, monkeypatch, moment):
    """At the first rename, and at each of the last: typed again, it is whole."""
    request = Prepare(name=json_lines(tmp_path / "a.jsonl"), out=str(tmp_path / "out"))
    whole, _ = prepare(Prepare(name=request.name, out=str(tmp_path / "whole")))
    rename = Path.rename

    def interrupted(self, target):
        if Path(target).name == moment:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(Killed):
        prepare(request)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    if moment != "journal.json":  # before the first one nothing counts
        with pytest.raises(UsageError, match="begun with another tokens"):
            prepare(Prepare(name=request.name, tokens="3k", out=request.out))
    folder, description = prepare(request)
    assert description == read_description(folder)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("cut_back", [True, False], ids=["", "control"])
def test_what_has_been_written_beyond_the_journal_does_not_count(tmp_path, monkeypatch, cut_back):
    """It is cut back; in the control it is not, and the bits differ."""
    request = Prepare(name=json_lines(tmp_path / "a.jsonl"), out=str(tmp_path / "out"))
    whole, _ = prepare(Prepare(name=request.name, out=str(tmp_path / "whole")))
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(Files, "read", dying(Files.read))
    Dying.after = 50
    with pytest.raises(Killed):
        prepare(request, commit_tokens=50)
    part = unfinished(tmp_path / "out")
    for path in (part / "train.bin", part / "validation.starts"):
        with path.open("ab") as file:
            file.write(b"\0" * 64)
    monkeypatch.undo()
    if not cut_back:
        monkeypatch.setattr("testbed.data.corpus_writer._cut_back", lambda *_: None)
    folder, _ = prepare(request)
    assert (contents(folder) == contents(whole)) == cut_back


def test_it_stops_at_the_tokens_that_were_asked_for(tmp_path):
    """With the document that reaches them; a longer one begins alike."""
    name = json_lines(tmp_path / "a.jsonl")
    _, short = prepare(Prepare(name=name, tokens="2k", out=str(tmp_path / "short")))
    total = sum(split["tokens"] for split in short["splits"].values())
    assert 2000 <= total < 2000 + max(map(len, TEXTS)) * 2
    prepare(Prepare(name=name, out=str(tmp_path / "long")))
    assert (tmp_path / "long" / "train.bin").read_bytes().startswith((tmp_path / "short" / "train.bin").read_bytes())


def test_what_is_there_already_is_not_made_again(tmp_path):
    """The same request: nothing is touched; another one: refused."""
    name, out = json_lines(tmp_path / "a.jsonl"), str(tmp_path / "out")
    folder, first = prepare(Prepare(name=name, out=out))
    before = os.stat(folder / "train.bin").st_mtime_ns
    assert prepare(Prepare(name=name, out=out))[1] == first
    assert os.stat(folder / "train.bin").st_mtime_ns == before
    with pytest.raises(UsageError, match="another tokens"):
        prepare(Prepare(name=name, out=out, tokens="2k"))


def test_a_corpus_that_cannot_get_its_name_is_kept(tmp_path):
    """Somebody else has taken it meanwhile: nothing is lost, and the place can be cleared."""
    request = Prepare(name=json_lines(tmp_path / "a.jsonl"), out=str(tmp_path / "out"))

    def take(*_):
        (tmp_path / "out" / "mine").mkdir(parents=True, exist_ok=True)

    with pytest.raises(UsageError, match="is whole, but cannot be renamed"):
        prepare(request, progress=take)
    (tmp_path / "out" / "mine").rmdir()
    assert documents(prepare(request)[0])


@pytest.mark.parametrize("journal", ["", "[]", "{}", '{"schema_version": 1, "asked": {}}'])
def test_a_damaged_journal_is_refused(tmp_path, journal):
    """And left where it is."""
    request = Prepare(name=json_lines(tmp_path / "a.jsonl"), out=str(tmp_path / "out"))
    part = unfinished(tmp_path / "out")
    part.mkdir()
    (part / "journal.json").write_text(journal)
    with pytest.raises(UsageError, match=r"damaged|begun with another"):
        prepare(request)
    assert (part / "journal.json").read_text() == journal


def test_two_at_once_are_refused(tmp_path):
    """The second one, while the first one holds the folder."""
    request = Prepare(name=json_lines(tmp_path / "a.jsonl"), out=str(tmp_path / "out"))

    def second(*_):
        with pytest.raises(UsageError, match="another 'testbed data prepare' is filling"):
            prepare(request)

    prepare(request, progress=second)
    assert documents(tmp_path / "out")


def test_texts_that_have_changed_meanwhile_are_refused(tmp_path, monkeypatch):
    """What was begun with the old ones stays until the user says otherwise."""
    name = json_lines(tmp_path / "a.jsonl")
    request = Prepare(name=name, out=str(tmp_path / "out"))
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(Files, "read", dying(Files.read))
    Dying.after = 50
    with pytest.raises(Killed):
        prepare(request, commit_tokens=50)
    monkeypatch.undo()
    json_lines(tmp_path / "a.jsonl", [*TEXTS, "one more"])
    with pytest.raises(UsageError, match="was begun with another content"):
        prepare(request)
    assert unfinished(tmp_path / "out").is_dir()
    with pytest.raises(UsageError, match="begun with another tokens"):
        prepare(Prepare(name=name, out=str(tmp_path / "out"), tokens="7k"))


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_prepared_corpus_is_trained_on(tmp_path, tokenizer):
    """Facts and queries begin behind the tokenizer's ids; documents are what was prepared; the sha is of the tokens."""
    size = 280 if tokenizer == "bpe" else None
    texts = [f"{number} {text}" for number in range(5) for text in TEXTS]
    request = Prepare(
        name=json_lines(tmp_path / "a.jsonl", texts), tokenizer=tokenizer, vocabulary=size, out=str(tmp_path / "out")
    )
    folder, description = prepare(request)
    vocabulary = description["tokenizer"]["vocabulary"]
    data = Data(corpus=str(folder), keys=4, values=2, tokenizer=tokenizer)
    source = open_source(data, seed=0, chunks=4)
    batch = source.batch("train", 0, 4, 256)
    assert (vocabulary, source.vocabulary) == (size or 256, (size or 256) + 12)
    assert source.sha256 == description["sha256"]
    assert batch.tokens[batch.evidence >= 0].max() >= vocabulary
    assert batch.documents.max() > 1
    with pytest.raises(UsageError, match="prepared with tokenizer"):
        open_source(Data(corpus=str(folder), tokenizer="gpt2"), seed=0, chunks=4)


def test_a_bpe_is_trained_on_what_is_not_held_out_and_stands_beside_the_tokens(tmp_path):
    """Text comes back from it; trained twice it is the same; another corpus can use it."""
    request = {"name": json_lines(tmp_path / "a.jsonl"), "tokenizer": "bpe", "vocabulary": 300}
    folder, _ = prepare(Prepare(**request, out=str(tmp_path / "1")))
    again, _ = prepare(Prepare(**request, out=str(tmp_path / "2")))
    assert contents(folder) == contents(again)
    found = documents(folder, load_tokenizer(str(folder)))
    assert found["train"] + found["validation"] == sorted(TEXTS, key=held_out)
    other, description = prepare(
        Prepare(name=json_lines(tmp_path / "b.jsonl", TEXTS[::-1]), tokenizer=str(folder), out=str(tmp_path / "3"))
    )
    assert description["tokenizer"] == {"name": "file", "vocabulary": 300, "separator": 0}
    assert documents(other, load_tokenizer(str(other)))["train"] == [text for text in TEXTS[::-1] if not held_out(text)]


@pytest.mark.parametrize(
    ("text", "count"), [("100M", 10**8), ("1.5B", 15 * 10**8), ("20k", 20_000), ("7", 7), ("2 m", 2 * 10**6)]
)
def test_counts(text, count):
    """Of tokens."""
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["0", "0.0M", "-5", "many", "", "1e6", "5T", "0.0001"])
def test_counts_that_are_none(text):
    """With what to type."""
    with pytest.raises(UsageError, match="100M or"):
        parse_count(text)
