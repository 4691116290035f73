"""Composed times: right in the mean, never backwards, and as uncertain as the few measured steps are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.analysis.comparison.timeline import compose
from testbed.intervals import known_within, mean_interval, t_quantile

SECONDS = st.floats(0.001, 1e4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(SECONDS, min_size=1, max_size=8),
    st.lists(SECONDS, max_size=3),
    st.integers(1, 120),
    st.one_of(st.none(), st.integers(1, 60)),
    st.floats(0, 1000),
)
def test_end_is_mean_steps_plus_syncs_and_time_never_goes_back(step, sync, steps, every, warm) -> None:
    """End = warm start + steps × mean + events × mean event; all columns rise, the band holds it."""
    table = compose(step, sync, steps=steps, sync_every=every, warm_seconds=warm, draws=40)
    events = (steps // (every or 1)) * np.mean(sync) if sync else 0.0
    assert table["time_seconds"].iloc[-1] == pytest.approx(warm + steps * np.mean(step) + events)
    assert table["step"].tolist() == list(range(1, steps + 1))
    for column in ("time_seconds", "time_low", "time_high"):
        assert (table[column].diff().dropna() >= -1e-6 * table[column].iloc[-1]).all()
    assert (table["time_low"] <= table["time_seconds"]).all()
    assert (table["time_seconds"] <= table["time_high"]).all()


def test_resampled_runs_centre_on_the_expectation() -> None:
    """The band's middle is the expected end, and its width that of the interval of the mean."""
    values = [4.4, 4.45, 4.38, 4.41, 4.43, 4.39]
    end = compose(values, [80.0], steps=500, sync_every=50, warm_seconds=0, draws=4000).iloc[-1]
    mean, half = mean_interval(values)
    assert (end["time_low"] + end["time_high"]) / 2 == pytest.approx(500 * mean + 10 * 80, rel=0.002)
    assert (end["time_high"] - end["time_low"]) / 2 == pytest.approx(500 * half, rel=0.1)


def test_same_seed_same_band() -> None:
    """A table can be made again to the last bit."""
    one, other = (
        compose([1.0, 1.1, 1.3], [2.0, 3.0], steps=20, sync_every=5, warm_seconds=1, seed=3) for _ in range(2)
    )
    assert one.equals(other)


def test_nothing_measured_is_refused() -> None:
    """No time can be composed from no steps."""
    with pytest.raises(ValueError, match="no measured step"):
        compose([], [1.0], steps=3, sync_every=None, warm_seconds=0)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227), (1000, 1.96234)],
)
def test_t_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    """Two-sided 95 % quantiles as every statistics book prints them."""
    assert t_quantile(freedom) == pytest.approx(quantile, abs=6e-5)


def test_interval_of_three_values() -> None:
    """1, 2, 3: mean 2, s = 1, half = 4.30265 / √3."""
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert mean_interval([5.0]) == (5.0, math.inf)


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ([1.0, 1.0], False),
        ([1.0, 1.0, 1.0], True),
        ([1.0, 1.01, 0.99], False),
        ([1.0, 1.005, 0.995], True),
        ([], False),
    ],
)
def test_known_within_two_per_cent(values: list[float], known: bool) -> None:
    """Two values never suffice, however alike; three do if they are alike enough."""
    assert known_within(values, 0.02) is known
