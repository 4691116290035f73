"""Snapshot: what stands in a mark's past is asked for, and neither its name nor its place gives it away."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.analysis.comparison.baselines import guessed
from testbed.config import Data, Model, Preset
from testbed.config.data import vocabulary_needed
from testbed.data.snapshot import Snapshot
from testbed.data.source import open_source
from testbed.errors import UsageError

WHOLE = 512


def task(*, registers: int = 1, values: int = 4, section: int = 20, lead: int = 17, marks: int = 32) -> Snapshot:
    return Snapshot(seed=1, registers=registers, values=values, section=section, lead=lead, marks=marks, context=WHOLE)


@settings(max_examples=60, deadline=None)
@given(
    registers=st.integers(1, 4),
    lead=st.integers(1, 20),
    room=st.integers(1, 20),
    context=st.sampled_from([16, 32, 64, 128, WHOLE]),
    step=st.integers(0, 100),
)
def test_every_answer_is_what_its_register_held_where_its_mark_stands(registers, lead, room, context, step):
    """By the tokens alone, read from the left; only answers count, and no mark stands or is asked for twice."""
    one = task(registers=registers, section=registers + lead + room, lead=lead, marks=128)
    batch = one.batch("train", step, 2, context)
    assert batch.tokens.max() < one.vocabulary
    assert np.array_equal(batch.counted, batch.evidence >= 0)
    for row in range(2):
        held, found, last_set = {}, {}, -1
        tokens = [*batch.tokens[row].tolist(), int(batch.labels[row, -1])]
        names = Counter(token for token in tokens if token >= one.first_mark)
        assert set(names.values()) <= {1}
        for place, token in enumerate(tokens):
            if one.first_set <= token < one.first_value:
                held[(token - one.first_set) // 4], last_set = (token - one.first_set) % 4, place
            elif one.first_mark <= token < one.first_query:
                assert place < context // 2
                found[token - one.first_mark] = dict(held), place, place - last_set
            elif token >= one.first_query:
                name, register = divmod(token - one.first_query, registers)
                holds, where, behind = found[name]
                assert tokens[place + 1] == one.first_value + holds[register]
                assert batch.evidence[row, place] == where
                assert context < WHOLE or behind >= lead
                assert place >= context // 2


def test_a_whole_sequence_is_what_its_settings_say():
    """Twelve sections, a mark each, all asked for, each value as often as any other; validation whatever the seed."""
    one = task()
    batch = one.batch("validation", 0, 64, WHOLE)
    assert (batch.counted.sum(1) == 12).all()
    places = [sorted(row[row >= 0] % 20) for row in batch.evidence]
    assert all(17 <= place < 20 for row in places for place in row)
    answers = batch.labels[batch.counted].reshape(64, 12) - one.first_value
    assert all(Counter(row) == dict.fromkeys(range(4), 3) for row in answers.tolist())
    other = Snapshot(**(vars_of(one) | {"seed": 7}))
    assert np.array_equal(batch.tokens, other.batch("validation", 0, 64, WHOLE).tokens)
    assert not np.array_equal(one.batch("train", 0, 4, WHOLE).tokens, other.batch("train", 0, 4, WHOLE).tokens)


def by_guessing(batch, first_value: int) -> tuple[float, float]:
    """How often the next answer is guessed right by counting: (answers so far; answers to neighbouring marks)."""
    by_count, by_neighbour, total = 0.0, 0, 0
    for row in range(len(batch.tokens)):
        left, known = Counter(dict.fromkeys(range(4), 3)), {}
        for place in np.flatnonzero(batch.counted[row]):
            value, section = int(batch.labels[row, place]) - first_value, int(batch.evidence[row, place]) // 20
            most = [each for each in left if left[each] == max(left.values())]
            by_count += (value in most) / len(most)
            by_neighbour += known.get(section) == value
            known[section] = value
            left[value] -= 1
            total += 1
    return by_count / total, by_neighbour / total


def test_no_answer_gives_another_away_but_by_counting():
    """With several marks a section whoever knows that they are neighbours is right in 0.9; here nobody is."""
    one = task()
    by_count, by_neighbour = by_guessing(one.batch("validation", 0, 400, WHOLE), one.first_value)
    assert by_neighbour == 0
    assert 0.40 < by_count < 0.50 < guessed(Data(task="snapshot", values=4)) < 0.53
    assert guessed(Data(values=8)) == 0.125


def vars_of(one: Snapshot) -> dict[str, int]:
    """What it was made with."""
    return {key.removeprefix("_"): value for key, value in vars(one).items() if key.startswith("_")}


def test_neither_name_nor_place_tells_the_value():
    """Over many sequences every mark, and every place of a mark, has each value equally often, within chance."""
    one = task()
    batch = one.batch("train", 0, 400, WHOLE)
    rows, places = np.nonzero(batch.counted)
    answers = batch.labels[rows, places] - one.first_value
    names = batch.tokens[rows, batch.evidence[rows, places]] - one.first_mark
    for what in (names, batch.evidence[rows, places] // 20, places // 64):
        for value in np.unique(what):
            counts = np.bincount(answers[what == value], minlength=4)
            expected = counts.sum() / 4
            assert ((counts - expected) ** 2 / expected).sum() < 25  # χ² with 3 degrees: once in 65,000


def test_every_register_of_every_mark_is_asked_for_once():
    """Twelve sections, three registers: 36 answers, none twice; where there is no room for all, what there is."""
    one = task(registers=3, section=20, lead=15)
    batch = one.batch("train", 0, 16, WHOLE)
    for tokens in batch.tokens:
        queries = [token - one.first_query for token in tokens.tolist() if token >= one.first_query]
        assert len(queries) == len(set(queries)) == 36
        assert sorted(Counter(query // 3 for query in queries).values()) == [3] * 12
    crowded = task(registers=8, section=20, lead=10, marks=32).batch("train", 0, 4, WHOLE)
    assert (crowded.counted.sum(1) == 96).all()
    assert (task(registers=8, section=10, lead=1, marks=64).batch("train", 0, 4, WHOLE).counted.sum(1) == 128).all()


@pytest.mark.parametrize(("context", "shortest", "longest"), [(32, 2, 4), (64, 2, 8), (128, 4, 16), (256, 8, 16)])
def test_sections_of_short_sequences_grow_with_the_context(context, shortest, longest):
    """From a 32nd of it to an eighth, powers of two up to the whole's: at most 16 sections, so 16 names are enough."""
    one = task(marks=16)
    batch = one.batch("train", 0, 100, context)
    found = set()
    for tokens in batch.tokens:
        starts = np.flatnonzero((tokens >= one.first_set) & (tokens < one.first_value))
        found |= set(np.diff(starts).tolist())
    assert (min(found), max(found)) == (shortest, longest)
    assert batch.counted.sum(1).max() <= 16


def test_values_in_short_sequences_are_independent():
    """What is not asked yet does not follow from what was; in whole sequences the last of four values does."""
    short = task().batch("train", 0, 200, 32)
    counts = [len(set(row[mask].tolist())) for row, mask in zip(short.labels, short.counted, strict=True)]
    assert min(counts) < 3  # of four or eight answers


def test_it_is_opened_and_refused():
    data = Data(task="snapshot", values=4, section=20, lead=17, marks=32)
    source = open_source(data, seed=0, chunks=16, context=WHOLE)
    assert vocabulary_needed(data) == source.vocabulary == 16 + 4 + 4 + 32 + 32
    short, whole = (source.batch("train", 0, 1, length).tokens for length in (32, WHOLE))
    assert (short.shape, whole.shape) == ((1, 32), (1, WHOLE))
    with pytest.raises(UsageError, match="it takes at least 19 for a mark to fit in"):
        Data(task="snapshot", section=18, lead=18)
    with pytest.raises(UsageError, match="registers"):
        Data(task="snapshot", registers=0)


@pytest.mark.parametrize(
    ("data", "chunks", "said"),
    [
        ({"section": 400, "lead": 300}, 16, "at least 800 and 4 are needed for a section"),
        ({"section": 2**62, "lead": 2**61}, 16, "are needed for a section to fit into the front half"),
        ({"registers": 4, "section": 40}, 64, "at least 80 and 16 are needed for a section"),
        (
            {"section": 20, "lead": 17, "marks": 12},
            16,
            "with up to 13 sections in a sequence there must be as many names",
        ),
    ],
)
def test_sequences_that_could_ask_for_nothing_are_refused(data, chunks, said):
    model = Model(vocabulary=500, width=8, layers=1, heads=1, kv_heads=1, ffn=8)
    with pytest.raises(UsageError, match=said):
        Preset(
            model=model, data=Data(task="snapshot", values=4, **data), context=512, batch=4, warm_steps=1, steps=1,
            sync_every=1, subspace_ranks=(1, 1), latent_rank=1, task_chunks=chunks, validation_every=1,
        )  # fmt: skip
