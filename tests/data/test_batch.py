"""Cuts of a stream of documents: which document each token belongs to."""

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.data.batch import Stream
from testbed.data.corpus import Corpus, standard_library, standard_library_files
from testbed.data.recall import RecallMix


def stream(lengths: list[int]) -> Stream:
    """Documents whose every token is their own number."""
    tokens = np.repeat(np.arange(len(lengths)), lengths).astype(np.uint16)
    return Stream(tokens=tokens, starts=np.cumsum([0, *lengths[:-1]]).astype(np.uint64))


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum), data=st.data())
def test_documents_are_numbered_in_a_row_from_the_first_of_a_cut(lengths, data):
    """A new number exactly where the document changes; empty documents have none."""
    packed = stream(lengths)
    start = data.draw(st.integers(0, len(packed.tokens) - 1))
    length = data.draw(st.integers(1, len(packed.tokens) - start))
    tokens, documents = packed.cut(start, length)
    assert np.array_equal(tokens, packed.tokens[start : start + length])
    assert documents.dtype == np.int32
    assert documents[0] == 0
    assert np.array_equal(np.diff(documents), (np.diff(tokens) != 0).astype(np.int32))


def test_a_batch_shows_the_document_of_each_input_token():
    """Not of its label: the last token of a document is its own, though what follows it is not."""
    packed = stream([40] * 500)
    mix = RecallMix(packed, packed, seed=0, share=0.0)
    batch = mix.batch("train", 0, 3, 256)
    assert np.array_equal(np.diff(batch.documents), (np.diff(batch.tokens) != 0).astype(np.int32))
    last = np.diff(batch.documents) == 1
    assert (batch.labels[:, :-1][last] == batch.tokens[:, 1:][last]).all()
    assert batch.counted.all()


def test_files_are_documents(tmp_path):
    """Of the standard library: each begins where its content does."""
    for number in range(60):
        (tmp_path / f"f{number:02}.py").write_text(f"value = {number}\n" * (number % 4 + 1))
    corpus: Corpus = standard_library(tmp_path)
    for packed in corpus.streams().values():
        text = packed.tokens.tobytes()
        assert len(packed.starts) > 1
        for begin in packed.starts.tolist():
            assert text[begin:].startswith(b"value = ")
            assert begin == 0 or text[begin - 2 : begin] == b"\n\n"


def test_only_the_librarys_own_files_are_read_in_the_order_of_their_paths(tmp_path):
    """Neither what pip has installed, at any depth, nor links; a folder before files whose names begin with its."""
    for name in (
        "b/a.py",
        "b.py",
        "b-c.py",
        "a/z.py",
        "a/b/c.py",
        "site-packages/p.py",
        "a/dist-packages/q.py",
        "a/t.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "b.py")
    (tmp_path / "folder").symlink_to(tmp_path / "b")
    found = [str(path.relative_to(tmp_path)) for path in standard_library_files(tmp_path)]
    assert found == ["a/b/c.py", "a/z.py", "b/a.py", "b-c.py", "b.py"]
    assert found == [
        str(path.relative_to(tmp_path))
        for path in sorted(tmp_path.rglob("*.py"))
        if not {"site-packages", "dist-packages"} & set(path.parts) and not path.is_symlink()
    ]


def test_a_cut_does_not_copy_where_documents_begin():
    """Of two million documents: what one row takes is its own size, not theirs."""
    packed = Stream(tokens=np.zeros(4_000_000, dtype=np.uint16), starts=np.arange(0, 4_000_000, 2, dtype=np.uint64))
    packed.cut(0, 64)
    tracemalloc.start()
    try:
        _, documents = packed.cut(3_000_001, 64)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert documents[-1] == 32
