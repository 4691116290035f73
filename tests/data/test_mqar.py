"""Multi-query associative recall: pairs, then queries; who cannot see the pairs can only guess."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.data.mqar import BLANK, MQAR


def test_pairs_stand_first_with_keys_and_values_apart():
    """Every key once; keys and values share no id; then blanks and queries only."""
    batch = MQAR(seed=0, keys=32, values=8, pairs=16, queries=10).batch("train", 0, 4, 256)
    keys, values = batch.tokens[:, :32:2], batch.tokens[:, 1:32:2]
    assert ((keys >= 1) & (keys <= 32)).all()
    assert ((values > 32) & (values <= 40)).all()
    assert all(len(set(row)) == 16 for row in keys.tolist())
    assert ((batch.tokens[:, 32:] == BLANK).sum(axis=1) >= 256 - 32 - 20).all()


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.integers(1, 20),
    queries=st.integers(0, 90),
    power=st.floats(0.01, 3),
    context=st.integers(8, 160),
    step=st.integers(0, 100),
)
def test_every_answer_is_its_keys_value_and_names_where_it_last_stood(pairs, queries, power, context, step):
    """Only answers count, and at most as many as were asked for."""
    task = MQAR(seed=1, keys=20, values=8, pairs=pairs, queries=queries, gap_power=power)
    batch = task.batch("train", step, 1, context)
    assert np.array_equal(batch.counted, batch.evidence >= 0)
    assert batch.counted.sum() <= (queries or context)
    assert (batch.documents == 0).all()
    tokens = batch.tokens[0]
    for position in np.flatnonzero(batch.counted[0]):
        evidence, answer, key = batch.evidence[0, position], batch.labels[0, position], tokens[position]
        assert tokens[evidence] == answer
        assert tokens[evidence - 1] == key
        assert key not in tokens[evidence + 1 : position]


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_the_power_law_places_queries(power):
    """A small power asks soon, as the paper does; 1 asks anywhere, so that answers are remote."""
    batch = MQAR(seed=0, keys=16, values=8, pairs=8, queries=8, gap_power=power).batch("train", 0, 64, 512)
    places = np.nonzero(batch.counted)[1]
    remote = (batch.evidence // 128 < np.arange(512) // 128)[batch.counted].mean()
    assert (np.median(places) < 80) == (power < 1)
    assert (remote > 0.6) == (power == 1)


def test_every_key_is_asked_before_any_is_asked_again():
    """So that short sequences ask for all of them."""
    batch = MQAR(seed=0, keys=16, values=8, pairs=8, queries=8).batch("train", 0, 16, 128)
    for row in range(16):
        assert len(set(batch.tokens[row][batch.counted[row]])) == 8


def test_without_the_other_chunks_a_remote_answer_is_a_guess():
    """Values are independent of all that a node of its own can see: even who knows every value that stands in his
    chunk, and guesses the most frequent of them, is right once in eight times. Who sees everything is always right."""
    batch = MQAR(seed=0, keys=16, values=8, pairs=16).batch("train", 0, 64, 512)
    position = np.arange(512)[None]
    remote = (batch.evidence >= 0) & (batch.evidence // 128 < position // 128)
    assert remote.sum() > 2000
    guesses, oracle = [], []
    for row, place in np.argwhere(remote):
        own = batch.tokens[row, place // 128 * 128 : place]
        values = own[own >= 17]
        guesses.append((np.bincount(values).argmax() if len(values) else 17) == batch.labels[row, place])
        oracle.append(batch.tokens[row, batch.evidence[row, place]] == batch.labels[row, place])
    assert abs(np.mean(guesses) - 1 / 8) < 0.03
    assert all(oracle)


def test_a_short_context_holds_fewer_pairs():
    """A warm start on one chunk asks too."""
    batch = MQAR(seed=0, keys=64, values=8, pairs=64).batch("train", 0, 2, 64)
    assert batch.counted.sum(axis=1).min() >= 16
