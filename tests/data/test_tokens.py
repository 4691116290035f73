"""From text to ids and back."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.data.tokens import GPT2_HELLO_WORLD, Bytes, Vocabulary, load_tokenizer, train_bpe
from testbed.errors import UsageError
from tests.data.texts import TEXTS

END = "<|endoftext|>"


def gpt2_files(folder: Path, *, vocabulary: int = 50257, hello: int = GPT2_HELLO_WORLD[0]) -> Path:
    """vocab.json and merges.txt as GPT-2's are written, of a few of its merges, under its ids."""
    folder.mkdir(exist_ok=True)
    merges = ["h e", "l l", "he ll", "hell o", "H e", "He ll", "Hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld"]
    ids = {END: vocabulary - 1, "Hello": hello, "Ġworld": GPT2_HELLO_WORLD[1]}
    for letter in "HeloĠwrdh!":
        ids.setdefault(letter, len(ids))
    for merge in merges:
        ids.setdefault(merge.replace(" ", ""), len(ids))
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def test_gpt2_by_its_files_is_recognised(tmp_path):
    """'Hello world' is 15496, 995, and the vocabulary 50257 ids; an end written out in a text is text."""
    tokenizer = load_tokenizer(str(gpt2_files(tmp_path / "files")))
    assert tokenizer.encode(["Hello world"])[0].tolist() == [15496, 995]
    assert (tokenizer.name, tokenizer.vocabulary, tokenizer.separator) == ("gpt2", 50257, 50256)
    assert tokenizer.decode(np.array([15496, 995])) == "Hello world"
    tokenizer.save(tmp_path)
    again = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert again.encode(["Hello world"])[0].tolist() == [15496, 995]
    assert again.name == "gpt2"


def test_another_vocabulary_is_not_taken_for_gpt2(tmp_path):
    """Negative controls: one id more, and as many ids of which one is another word's."""
    assert load_tokenizer(str(gpt2_files(tmp_path / "files", vocabulary=50258))).name == "file"
    assert load_tokenizer(str(gpt2_files(tmp_path / "others", hello=15495))).name == "file"


def test_an_end_of_text_inside_a_text_is_text():
    """Else a page could end documents where there is no end."""
    tokenizer = train_bpe([*TEXTS, END], 320)
    tokens = tokenizer.encode([f"one {END} two"])[0]
    assert tokenizer.separator not in tokens
    assert tokenizer.decode(tokens) == f"one {END} two"


@given(text=st.text(max_size=60))
def test_text_comes_back(text):
    """From bytes and from a BPE that never saw it."""
    for tokenizer in (Bytes(), BPE):
        tokens = tokenizer.encode([text])[0]
        assert tokenizer.decode(tokens) == text
        assert tokens.max(initial=0) < tokenizer.vocabulary


BPE = train_bpe(TEXTS, 300)


def test_a_bpe_is_shorter_than_bytes():
    """On what it was trained on."""
    assert BPE.vocabulary == 300
    assert len(BPE.encode([TEXTS[5]])[0]) < 0.7 * len(TEXTS[5].encode())


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"tokenizer.json": "{}"}, "no tokenizer that"),
        ({"tokenizer.json": "nothing"}, "no tokenizer that"),
        ({"vocab.json": "{}", "merges.txt": "a b c\n"}, "no tokenizer that"),
        ({"vocab.json": "{}"}, "is no tokenizer: type bytes, gpt2 or bpe"),
        ({}, "is no tokenizer: type bytes, gpt2 or bpe"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, files, named):
    """With its path."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=named):
        load_tokenizer(str(tmp_path))


def test_ids_beyond_16_bits_are_refused(tmp_path):
    """65536 ids fit, one more does not."""
    assert load_tokenizer(str(gpt2_files(tmp_path / "fits", vocabulary=65536))).vocabulary == 65536
    with pytest.raises(UsageError, match="65537 token ids; there can be 65536"):
        load_tokenizer(str(gpt2_files(tmp_path / "files", vocabulary=65537)))


def test_a_vocabulary_without_an_end_of_text_is_refused():
    """Documents could not be told apart."""
    import tokenizers

    with pytest.raises(UsageError, match="no token that ends a text"):
        Vocabulary(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])), "mine")
