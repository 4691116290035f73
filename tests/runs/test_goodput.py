"""What measured lines say of a rate: only those that a link's own rate held back say anything."""

from types import SimpleNamespace
from typing import Any

import pytest

from emulation.measure import verify
from emulation.measure.measurement import Goodput
from emulation.measure.verify import Tolerance
from emulation.spec.network import Link, star
from testbed.cli import execute
from testbed.driver import arm_record
from testbed.driver.links import Links
from testbed.settings.emulate import Request, resolve
from tests.emulation.measured import measurement, proof
from tests.runs.tiny import PRESET


def line(phase, direction, goodput, ratio, *, binding=True) -> Goodput:
    return Goodput(
        node="n0", peer=None, phase=phase, direction=direction, goodput_bps=goodput, arrived_bps=goodput, ratio=ratio,
        expected_bps=None if ratio is None else round(goodput / ratio), binding=binding, first_ratio=None,
        first_seconds=0.1, ack_share=None, resent_segments=0,
    )  # fmt: skip


def links_with(lines, **asked) -> Links:
    wanted: dict[str, Any] = {"bw": "40mbit", "accounting": "nic", "nodes": 2, "pace": "none", "preset": PRESET} | asked
    settings = resolve(Request(**wanted), command="")
    backend: Any = SimpleNamespace(network=settings.network.unshaped())
    links = Links(settings, backend)
    links.measured["before"] = proof(lines)
    return links


def rate_measured(links: Links) -> float | None:
    comparison: Any = SimpleNamespace(links=links, settings=links.settings)
    return arm_record._rate_measured(comparison)


CABLE = [
    line("alone", "up", 38e6, 0.99),
    line("alone", "down", 37e6, 0.97),
    line("together", "up", 36e6, 0.95, binding=False),
    line("together", "down", 35e6, 0.12, binding=False),
]


def test_a_down_link_that_nothing_fills_is_no_measurement():
    links = links_with(CABLE, down="300mbit")
    assert rate_measured(links) == pytest.approx(40e6 * 0.98)
    assert links.goodput_bps() == 36e6
    assert [(each.direction, each.together_bps) for each in links.evidence()] == [
        ("up", None),
        ("down", None),
    ]


def test_full_load_comes_first_where_it_binds():
    links = links_with([line("alone", "up", 38e6, 0.99), line("together", "up", 37e6, 0.95)])
    assert rate_measured(links) == pytest.approx(40e6 * 0.95)
    assert links.goodput_bps() == 37e6


def test_links_without_a_rate_say_nothing():
    links = links_with([line("alone", "up", 9e9, None), line("together", "up", 9e9, None)])
    assert rate_measured(links) is None
    assert links.evidence() == ()


def test_verify_counts_what_it_measured(capsys):
    """And says a tolerance of half a percent as such."""
    network = star(2, Link(rate_bps=40_000_000, rate_down_bps=300_000_000), "nic")
    execute._print_measured(network, proof(CABLE), Tolerance(rate=0.005))
    said = " ".join(capsys.readouterr().out.split())
    assert "(0.5% allowed): 40mbit per node asked, goodput within" in said
    assert "on all 2 measurements" in said


def test_where_all_send_to_all_the_mean_is_said():
    """Beside the worst of the others, for congestion control divides those."""
    lines = [line("alone", "up", 38e6, 0.99), line("together", "up", 36e6, 0.9), line("together", "down", 40e6, 1.02)]
    said = verify.proof(star(2, Link(rate_bps=40_000_000), "nic"), measurement(lines))
    assert "goodput within 1.00% of the expected on all 1 measurements, -4.00% in the mean of 2 where all" in said
