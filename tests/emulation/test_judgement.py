"""Which measurements prove a link, at their bounds: no network is needed to know."""

from dataclasses import replace
from typing import Any

import pytest

from emulation.measure.measurement import Goodput, RoundTrip
from emulation.measure.tolerance import Tolerance, check
from tests.emulation.measured import measurement


def link(ratio: float | None, *, phase: str = "alone", peer: str = "n1", first_ratio: float = 1.0) -> Goodput:
    """A link of 100 Mbit/s on which so many times the expected goodput arrived; without a peer, an access link."""
    arrived = round(1e8 * (ratio or 0))
    return Goodput(
        node="n0", peer=peer or None, direction="up", phase=phase, ratio=ratio, binding=True, expected_bps=10**8,
        goodput_bps=arrived, arrived_bps=arrived, ack_share=0.0, first_seconds=0.1, first_ratio=first_ratio,
        resent_segments=0,
    )  # fmt: skip


def ping(**more: Any) -> RoundTrip:
    """Twenty echoes over 10 ms each way, as asked for."""
    found = RoundTrip(
        source="n0", target="n1", sent=20, lost=0, median_us=20_000.0, p99_us=20_100.0, iqr_us=10.0, expected_us=20_000
    )  # fmt: skip
    return replace(found, **more)


def problems(*links: Goodput, pings: tuple[RoundTrip, ...] = ()) -> list[str]:
    return check(measurement(links, pings), Tolerance())


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ([link(1.019), link(0.981)], ""),
        ([link(1.021)], "(+2.1 %)"),
        ([link(0.979)], "(-2.1 %)"),
        ([link(0.0)], "no byte arrived"),
        ([link(1.0, first_ratio=1.03)], "a bucket is too deep"),
        ([link(1.021, phase="together")], "(+2.1 %)"),
        ([link(0.979, phase="together")], "(-2.1 %)"),
    ],
)
def test_a_link_is_held_to_its_rate(links, says):
    found = problems(*links)
    assert bool(found) == bool(says), found
    assert says in " ".join(found)


@pytest.mark.parametrize(
    ("ratios", "says"),
    [
        ((1.0, 1.0), ""),
        ((0.93, 1.01), ""),  # one may lose to the other
        ((1.03, 0.96), "(+3.0 %)"),  # none may carry more than it should
        ((0.94, 0.94), "all links together carried -6.0 %"),
    ],
)
def test_contended_links_carry_at_most_their_rate_and_nearly_all_of_it_together(ratios, says):
    """Access links while all send to all."""
    found = problems(*(link(ratio, phase="together", peer="") for ratio in ratios))
    assert bool(found) == bool(says), found
    assert says in " ".join(found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"median_us": 21_300.0}, ""),  # 1 ms and 2 %
        ({"median_us": 21_500.0}, "round trip of 21.50 ms in the median, asked for 20.00"),
        ({"median_us": 18_500.0}, "round trip of 18.50 ms"),
        ({"lost": 1}, "1 of 20 echo packets got lost"),
        ({"lost": 20, "median_us": None}, "no echo came back"),
        ({"loss_asked": 0.1, "lost": 2}, ""),
        ({"spread_us": 3000, "iqr_us": 4000}, ""),
        ({"spread_us": 3000, "iqr_us": 900}, "a jitter as asked for would give"),
    ],
)
def test_a_round_trip_is_held_to_its_delay(change, says):
    found = problems(link(1.0), pings=(ping(**change),))
    assert bool(found) == bool(says), found
    assert says in " ".join(found)
