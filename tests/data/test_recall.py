"""The recall mix: what is in it, what counts, and that it depends on nothing but seed and step."""

import numpy as np
import pytest

from testbed.data.corpus import standard_library
from testbed.data.recall import FIRST_FACT, FIRST_QUERY, VALUES, VOCABULARY, RecallMix

TEXT = np.frombuffer(bytes(range(97, 123)) * 400, dtype=np.uint8)


def mix(seed: int = 0) -> RecallMix:
    return RecallMix(TEXT, TEXT[::-1].copy(), seed=seed)


def test_same_seed_and_step_same_batch():
    """Invariant 7: order is a function of (seed, step)."""
    for field in ("tokens", "labels", "counted", "evidence"):
        first, again = (getattr(mix().batch("train", 7, 2, 512), field) for _ in range(2))
        assert np.array_equal(first, again)
    assert not np.array_equal(mix().batch("train", 7, 2, 512).tokens, mix().batch("train", 8, 2, 512).tokens)
    assert not np.array_equal(mix().batch("train", 7, 2, 512).tokens, mix(1).batch("train", 7, 2, 512).tokens)


def test_all_seeds_are_validated_on_the_same_sequences():
    """Runs of different seeds can be compared only then."""
    assert np.array_equal(mix(0).batch("validation", 3, 2, 64).tokens, mix(9).batch("validation", 3, 2, 64).tokens)


def test_every_answer_is_its_keys_fact_and_names_where_it_stood():
    """Evidence points at the newest earlier occurrence of the very token that is to be predicted."""
    batch = mix().batch("train", 0, 4, 512)
    answers = np.argwhere(batch.evidence >= 0)
    assert len(answers) > 100
    for row, position in answers:
        answer, asked = batch.labels[row, position], batch.tokens[row, position]
        assert FIRST_QUERY <= asked < FIRST_FACT
        assert (answer - FIRST_FACT) // VALUES == asked - FIRST_QUERY
        evidence = batch.evidence[row, position]
        assert batch.tokens[row, evidence] == answer
        assert answer not in batch.tokens[row, evidence + 1 : position + 1]


def test_what_cannot_be_predicted_does_not_count():
    """Planted facts and queries are masked; text bytes and answers count."""
    batch = mix().batch("train", 1, 4, 512)
    is_query = (batch.labels >= FIRST_QUERY) & (batch.labels < FIRST_FACT)
    is_answer = batch.evidence >= 0
    planted = (batch.labels >= FIRST_FACT) & ~is_answer
    assert not batch.counted[is_query | planted].any()
    assert batch.counted[~(is_query | planted)].all()
    assert batch.labels.max() < VOCABULARY


def test_most_queries_ask_for_an_earlier_chunk():
    """70 % ask for one while any is left there; in all, about half of the later answers need an exchange."""
    batch = mix().batch("train", 2, 16, 512)
    position = np.arange(512)[None]
    late = (batch.evidence >= 0) & (position >= 256)
    remote = late & (batch.evidence // 128 < position // 128)
    assert 0.4 < remote.sum() / late.sum() < 0.7


def test_labels_are_shifted_before_any_cut():
    """The label of a chunk's last token is the next chunk's first."""
    batch = mix().batch("train", 3, 2, 128)
    assert np.array_equal(batch.labels[:, :-1], batch.tokens[:, 1:])


def test_files_are_held_out_by_their_content(tmp_path):
    """About one in ten; moving files about changes nothing; no held-out byte is trained on."""
    for number in range(200):
        (tmp_path / f"f{number}.py").write_text(f"x = {number}\n" * 5)
    corpus = standard_library(tmp_path)
    held_out = set(corpus.validation.tobytes().split(b"\n")) - {b""}
    trained = set(corpus.train.tobytes().split(b"\n")) - {b""}
    assert 5 <= len(held_out) <= 40
    assert not held_out & trained
    (tmp_path / "f0.py").rename(tmp_path / "a.py")
    moved = standard_library(tmp_path)
    assert sorted(moved.validation.tobytes()) == sorted(corpus.validation.tobytes())


def test_a_folder_without_text_is_refused(tmp_path):
    """Nothing to train on is an error, not an empty run."""
    with pytest.raises(ValueError, match="too few"):
        standard_library(tmp_path)
