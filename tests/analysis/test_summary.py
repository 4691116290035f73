"""The summary: fits a terminal, says what is true, keeps quiet about what is not known."""

import io
import math
import re
from dataclasses import fields, replace
from typing import Any

import pytest
from rich.console import Console

from testbed.analysis.comparison.captions import caption
from testbed.analysis.comparison.summary import print_summary
from testbed.formats import duration, percent, rate, significant, size
from testbed.records import ArmRecord, ArmSummary, ComparisonRecord
from tests.analysis.synthetic import made_up, shown, with_arm


def _printed(comparison: ComparisonRecord, summaries: dict[str, ArmSummary]) -> str:
    console = Console(file=io.StringIO(), width=90)
    print_summary(shown(comparison, summaries), console)
    return console.file.getvalue()  # pyrefly: ignore


def test_everything_is_readable_at_90_columns() -> None:
    """No cell is cut, no line is too long, no number reads 0.00."""
    text = _printed(*made_up())
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 90
    assert not re.search(r"\b0\.00?\b", text)


def test_sentences_say_what_was_won_and_paid() -> None:
    """Codec, sparse sync and what is modelled each have their sentence."""
    text = " ".join(_printed(*made_up()).split())
    assert "latent, against exact exchange on the same link: 3.51 % of the K and V bytes" in text
    assert "Sparse synchronisation alone" in text
    assert "validation loss +0.020 nats" in text
    assert "Modelled: compute time (the target's) and the link of centralised." in text
    assert "decentralised 420 s" in text
    assert "A whole run takes" in text


def test_void_and_invalid_come_first() -> None:
    """What breaks the comparison is said before what it found."""
    comparison, summaries = made_up()
    comparison = replace(comparison, void="On this task the comparison shows nothing.")
    text = _printed(with_arm(comparison, "subspace", valid=False, why=("link out of tolerance",)), summaries)
    assert (
        text.index("shows nothing") < text.index("subspace is not valid: link out of") < text.index("latent, against")
    )


def test_times_that_are_not_valid_are_said_to_be_so_wherever_they_stand() -> None:
    """In the sentence that says what was won by them, and below every figure; and only there."""
    comparison, summaries = made_up()
    before = _printed(comparison, summaries)
    comparison = with_arm(comparison, "subspace", valid=False, why=("disturbed",))
    sentences = {line.split(",")[0]: line for line in " ".join(_printed(comparison, summaries).split()).split("• ")}
    assert re.search(r"steps [\d.]+ × as fast \(not valid\)", sentences["subspace"])
    assert "(not valid)" not in sentences["latent"]
    assert "(not valid)" not in before
    assert "· not valid: subspace." in caption(shown(comparison, summaries), "")


def test_unknown_numbers_and_odd_names_do_no_harm() -> None:
    """Nulls become dashes, mark-up in a name is text, a modelled link has no wire bytes."""
    comparison, _ = made_up()
    optional = [each.name for each in fields(ArmRecord) if "None" in str(each.type) and each.name != "codec"]
    assert len(optional) > 20
    nothing: dict[str, Any] = dict.fromkeys(optional) | {"step_seconds_mean": math.nan}
    arms = tuple(replace(arm, arm=f"[red]{at}[/x]", **nothing) for at, arm in enumerate(comparison.arms))
    text = _printed(replace(comparison, arms=arms), {})
    assert "[red]0[/x]" in text
    assert "–" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0001234, "0.000123"),
        (9.996, "10.0"),
        (62.04, "62.0"),
        (15032.0, "15,000"),
        (0, "0"),
        (None, "–"),
        (-2.5, "-2.50"),
    ],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    """Small numbers keep their digits, large ones gain none."""
    assert significant(value) == text


def test_units() -> None:
    """The unit that reads best."""
    assert (rate(3e8), rate(1e11), size(6.44e9), size(0)) == ("300 Mbit/s", "100 Gbit/s", "6.44 GB", "0 B")
    assert (duration(62), duration(900), duration(16000)) == ("62 s", "15 min", "4.44 h")
    assert (percent(0.0351), percent(-0.0109, signed=True), percent(0.00109, signed=True)) == (
        "3.51 %",
        "−1.09 %",
        "+0.11 %",
    )


def test_an_arm_that_sends_nothing_at_its_own_speed_says_nothing_of_the_closed_form() -> None:
    """Its step is its compute, as measured: that they are equal is no evidence. A paced one's is."""
    comparison, summaries = made_up()
    comparison = replace(comparison, arms=tuple(arm for arm in comparison.arms if arm.arm == "control"))
    assert "of compute + bytes / measured goodput" in " ".join(_printed(comparison, summaries).split())
    comparison = with_arm(comparison, "control", wire_bytes_per_step=0.0, compute_kind="measured")
    assert "of compute + bytes / measured goodput" not in " ".join(_printed(comparison, summaries).split())
