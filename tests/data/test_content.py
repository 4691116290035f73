"""A corpus is known by the content of its files; folders are read as sets are laid out; damage is named."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as files

from testbed.data.prepare import Prepare, prepare
from testbed.errors import UsageError
from tests.data.texts import TEXTS, documents, json_lines

OTHER = [f"another {text}" for text in TEXTS]


def both(folder: Path) -> list[str]:
    return sorted(text for texts in documents(folder).values() for text in texts)


def test_a_file_that_has_changed_is_not_the_old_corpus(tmp_path, monkeypatch):
    """The same request again, with other texts in the file; the old corpus stays."""
    monkeypatch.chdir(tmp_path)
    name = json_lines(tmp_path / "t.jsonl")
    folder, first = prepare(Prepare(name=name))
    json_lines(tmp_path / "t.jsonl", OTHER)
    with pytest.raises(UsageError, match="holds a corpus with another content: delete it"):
        prepare(Prepare(name=name))
    assert both(folder) == sorted(TEXTS)
    json_lines(tmp_path / "t.jsonl")
    assert prepare(Prepare(name=name)) == (folder, first)


def test_a_namesake_elsewhere_is_another_corpus(tmp_path, monkeypatch):
    """Which would get the same folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    prepare(Prepare(name=json_lines(tmp_path / "t.jsonl")))
    with pytest.raises(UsageError, match="another content"):
        prepare(Prepare(name=json_lines(tmp_path / "other" / "t.jsonl", OTHER)))


def test_a_file_of_a_folder_that_has_changed_is_noticed(tmp_path):
    """As many files and as many bytes."""
    (tmp_path / "in").mkdir()
    for name, texts in (("a", TEXTS), ("b", OTHER)):
        json_lines(tmp_path / "in" / f"{name}.jsonl", texts)
    prepare(Prepare(name=str(tmp_path / "in"), out=str(tmp_path / "out")))
    file = tmp_path / "in" / "b.jsonl"
    file.write_text(file.read_text().replace("another", "ANOTHER"))
    with pytest.raises(UsageError, match="another content"):
        prepare(Prepare(name=str(tmp_path / "in"), out=str(tmp_path / "out")))


def test_a_tokenizer_that_was_exchanged_is_noticed(tmp_path):
    """By the content of its file."""
    tokenizers = pytest.importorskip("tokenizers")

    def train(size: int) -> None:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(TEXTS, trainer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))

    train(300)
    request = Prepare(
        name=json_lines(tmp_path / "t.jsonl"), tokenizer=str(tmp_path / "tokenizer.json"), out=str(tmp_path / "out")
    )
    prepare(request)
    prepare(request)
    train(280)
    with pytest.raises(UsageError, match="another content of the tokenizer"):
        prepare(request)


def test_a_folder_is_read_as_sets_are_laid_out(tmp_path):
    """Hidden files, the card and other kinds left out, and said; endings in any case, compressed lines read."""
    source = tmp_path / "in"
    (source / "data").mkdir(parents=True)
    (source / ".ipynb_checkpoints").mkdir()
    (source / ".ipynb_checkpoints" / "x.py").write_text("hidden")
    (source / "README.md").write_text("the card")
    (source / "weights.bin").write_bytes(b"\0")
    parts = [TEXTS[at::5] for at in range(5)]
    json_lines(source / "data" / "MORE.JSONL", parts[0])
    json_lines(source / "data" / "more.json", parts[1])
    files.write_table(pa.table({"text": parts[2]}), source / "data" / "train.Parquet")
    for ending, kind, lines in (("gz", "gzip", parts[3]), ("zst", "zstd", parts[4])):
        raw = Path(json_lines(tmp_path / "raw.jsonl", lines)).read_bytes()
        with pa.output_stream(str(source / "data" / f"less.jsonl.{ending}"), compression=kind) as out:
            out.write(raw)
    folder, description = prepare(Prepare(name=str(source), out=str(tmp_path / "out")))
    assert both(folder) == sorted(TEXTS)
    said = description["source"]["left_out"]
    assert set(said) == {"README.md (card)", ".ipynb_checkpoints/x.py (hidden)", "weights.bin (of another kind)"}


def test_a_card_among_texts_alone_is_a_text(tmp_path):
    """There is nothing else that it could be the card of."""
    (tmp_path / "in").mkdir()
    for at, text in enumerate(TEXTS):
        (tmp_path / "in" / f"{at}.txt").write_text(text)
    (tmp_path / "in" / "README.md").write_text("read me")
    folder, _ = prepare(Prepare(name=str(tmp_path / "in"), out=str(tmp_path / "out")))
    assert "read me" in both(folder)


def test_an_array_is_no_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}]))
    with pytest.raises(UsageError, match=r"no field 'text' \(fields: none\).*of one array make lines with jq"):
        prepare(Prepare(name=str(tmp_path / "a.json"), out=str(tmp_path / "out")))


def damaged_parquet(path: Path) -> str:
    """Whole but for a page of the second of three row groups."""
    texts = [f"{number} " + "text " * 40 for number in range(90)]
    files.write_table(pa.table({"text": texts}), path, row_group_size=30, compression="snappy", use_dictionary=False)
    column = files.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle - 40 : middle + 40] = bytes(80)
    path.write_bytes(data)
    return str(path)


def damaged_gzip(path: Path) -> str:
    path.write_bytes(gzip.compress(Path(json_lines(path.with_suffix(".jsonl"), TEXTS * 20)).read_bytes())[:-200])
    return str(path)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (damaged_parquet, "a.parquet", "damaged in row group 2 of 3, behind row"),
        (damaged_gzip, "a.jsonl.gz", "a.jsonl.gz is damaged behind line"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path, make, name, words):
    """And what to do; nothing is left."""
    source = make(tmp_path / name)
    with pytest.raises(UsageError, match=words) as caught:
        prepare(Prepare(name=source, out=str(tmp_path / "out")))
    assert "get it anew" in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_blank_documents_and_marks_are_no_text(tmp_path):
    """A mark of the byte order changes neither the text nor which side of the split it is on."""
    marked = [f"\ufeff{text}" for text in TEXTS]
    folder, _ = prepare(
        Prepare(name=json_lines(tmp_path / "a.jsonl", [*marked, " ", "\n\t", "\ufeff "]), out=str(tmp_path / "out"))
    )
    plain, _ = prepare(Prepare(name=json_lines(tmp_path / "b.jsonl"), out=str(tmp_path / "plain")))
    assert documents(folder) == documents(plain)
    (tmp_path / "texts").mkdir()
    for at, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{at:03}.txt").write_text(text, encoding="utf-8-sig")
    texts, _ = prepare(Prepare(name=str(tmp_path / "texts"), out=str(tmp_path / "marked")))
    assert documents(texts) == documents(plain)
