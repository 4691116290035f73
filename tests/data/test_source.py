"""The one door to data: what it gives is a function of seed, split, step and row, and is what it always was."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config.data import Data, vocabulary_needed
from testbed.config.model import Model
from testbed.data.batch import Batch, Split
from testbed.data.corpus import Corpus
from testbed.data.integrity import check_data
from testbed.data.recall import RecallMix
from testbed.data.source import Source, open_source
from testbed.errors import UsageError

TEXT = np.frombuffer(bytes(range(97, 123)) * 400, dtype=np.uint8)
FIELDS = ("tokens", "labels", "counted", "evidence", "documents")
TASKS = [
    Data(),
    Data(keys=64, values=16),
    Data(task="text"),
    Data(task="mqar", keys=64, values=32, pairs=16, queries=20),
]


def source(data: Data, seed: int) -> Source:
    """Over a small corpus of three documents a split."""
    starts = np.array([0, 700, 5000], dtype=np.uint64)
    corpus = Corpus(
        train=TEXT, validation=TEXT[::-1].copy(), sha256="abc", train_starts=starts, validation_starts=starts
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("testbed.data.source.standard_library", lambda: corpus)
        return open_source(data, seed=seed, chunks=4)


def digest(batch: Batch, fields: tuple[str, ...] = FIELDS[:4]) -> str:
    sha = hashlib.sha256()
    for field in fields:
        sha.update(np.ascontiguousarray(getattr(batch, field)).tobytes())
    return sha.hexdigest()


def test_the_defaults_give_the_batches_that_runs_so_far_were_trained_on():
    """Recorded when the mix had one difficulty and bytes only."""
    recorded: list[tuple[Split, int, int, int, str]] = [
        ("train", 1_000_007, 2, 512, "50ddb49db36183c17882046be1de593e4bae1532347a64c23cd7d5e8a8589f8b"),
        ("validation", 5, 8, 512, "02f7eb3cf4b40fc170b217e0f4a7f9a8477151e148e7a925d23d3923d0dbc851"),
        ("train", 3, 8, 128, "8bbd3168d42c4dc881ad67c9ea37177404ddef9503dea618aad5a10faada80f9"),
    ]
    for made in (source(Data(), 3), RecallMix(TEXT, TEXT[::-1].copy(), seed=3, chunks=4)):
        for split, step, sequences, context, expected in recorded:
            assert digest(made.batch(split, step, sequences, context)) == expected
    assert digest(source(Data(share=0.31), 3).batch(*recorded[0][:4])) != recorded[0][4]


@settings(max_examples=30, deadline=None)
@given(
    data=st.sampled_from(TASKS),
    seed=st.integers(0, 5),
    step=st.integers(0, 10**7),
    rows=st.integers(1, 5),
    split=st.sampled_from(["train", "validation"]),
)
def test_a_row_depends_on_seed_split_step_and_its_number_only(data, seed, step, rows, split):
    """Whoever reads how many rows, in which order, after whatever else: the same."""
    made = source(data, seed)
    many = made.batch(split, step, 5, 96)
    made.batch("train", step + 1, 2, 64)
    few = source(data, seed).batch(split, step, rows, 96)
    for field in FIELDS:
        assert np.array_equal(getattr(few, field), getattr(many, field)[:rows])


@pytest.mark.parametrize("data", TASKS, ids=lambda data: f"{data.task}-{data.keys}")
def test_training_depends_on_the_seed_and_validation_does_not(data):
    """And no two steps, rows or splits are the same."""
    one, other = source(data, 0), source(data, 1)
    assert digest(one.batch("train", 4, 2, 96)) != digest(other.batch("train", 4, 2, 96))
    assert digest(one.batch("validation", 4, 2, 96), FIELDS) == digest(other.batch("validation", 4, 2, 96), FIELDS)
    assert digest(one.batch("train", 4, 2, 96)) != digest(one.batch("train", 5, 2, 96))
    assert digest(one.batch("train", 4, 2, 96)) != digest(one.batch("validation", 4, 2, 96))
    rows = one.batch("train", 4, 2, 96).tokens
    assert not np.array_equal(rows[0], rows[1])


@pytest.mark.parametrize("data", TASKS, ids=lambda data: f"{data.task}-{data.keys}")
def test_the_vocabulary_needed_is_the_vocabulary_used(data):
    """Every id is below it, and with enough tokens its last one comes up."""
    made = source(data, 0)
    batch = made.batch("train", 0, 64, 512)
    assert made.vocabulary == vocabulary_needed(data)
    assert batch.tokens.max() < made.vocabulary
    if data.task != "text":
        assert batch.tokens.max() == made.vocabulary - 1


def test_a_vocabulary_that_is_too_small_is_refused():
    """With the number to type; one that is larger than needed is not."""

    def model(vocabulary: int) -> Model:
        return Model(vocabulary=vocabulary, width=8, layers=1, heads=1, kv_heads=1, ffn=8)

    check_data(Data(), model(400))
    check_data(Data(), model(512))
    with pytest.raises(UsageError, match=r"399 is too small .* vocabulary = 400"):
        check_data(Data(), model(399))
    with pytest.raises(UsageError, match="vocabulary = 1344"):
        check_data(Data(keys=64, values=16), model(400))


def test_the_harder_mix_asks_for_more_facts():
    """64 × 16: more keys in play, evidence still right, text ids untouched."""
    batch = source(Data(keys=64, values=16), 0).batch("train", 0, 8, 512)
    facts = batch.tokens[batch.tokens >= 256 + 64]
    assert len(np.unique((facts - 320) // 16)) == 64
    for row, position in np.argwhere(batch.evidence >= 0):
        answer, asked = batch.labels[row, position], batch.tokens[row, position]
        assert (answer - 320) // 16 == asked - 256
        evidence = batch.evidence[row, position]
        assert batch.tokens[row, evidence] == answer
        assert answer not in batch.tokens[row, evidence + 1 : position + 1]


def test_text_alone_has_nothing_planted():
    """Every label is text and counts; a share of nothing is the same text."""
    text = source(Data(task="text"), 0).batch("train", 3, 4, 256)
    assert text.counted.all()
    assert (text.evidence == -1).all()
    assert np.array_equal(text.tokens, source(Data(share=0), 0).batch("train", 3, 4, 256).tokens)
    assert not np.array_equal(text.tokens, source(Data(), 0).batch("train", 3, 4, 256).tokens)


def test_a_corpus_shorter_than_a_sequence_is_refused():
    """When the sequence is asked for."""
    with pytest.raises(UsageError, match="10400 tokens"):
        source(Data(task="text"), 0).batch("train", 0, 1, 20_000)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"keys": 0}, "keys"),
        ({"values": 1}, "values"),
        ({"share": 1.5}, "share"),
        ({"share": -0.1}, "share"),
        ({"gap_power": 0}, "gap_power"),
        ({"queries": -1}, "queries"),
        ({"task": "mqar", "pairs": 17}, "keys = 16"),
    ],
)
def test_a_wrong_setting_is_refused(wrong, named):
    """Each by its name."""
    with pytest.raises(UsageError, match=named):
        Data(**wrong)


def test_other_tokens_of_the_standard_library_are_prepared_first():
    """With what to type; and a corpus that is not there names the nearest."""
    with pytest.raises(UsageError, match="testbed data prepare stdlib --tokenizer gpt2"):
        open_source(Data(tokenizer="gpt2"), seed=0, chunks=4)
    with pytest.raises(UsageError, match="did you mean 'stdlib'"):
        open_source(Data(corpus="stdlb"), seed=0, chunks=4)
