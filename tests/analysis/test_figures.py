"""Every figure draws: whatever the mode, whatever is missing, whatever users call their arms."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text

from testbed.analysis.comparison.bars import figure_bytes, figure_step_time
from testbed.analysis.comparison.captions import caption
from testbed.analysis.comparison.figures import (
    FIGURES,
    figure_loss_against_hours,
    figure_loss_against_step,
    write_figures,
)
from testbed.analysis.comparison.load import Comparison
from testbed.analysis.plot.style import KINDS, styled
from testbed.records import ArmRecord
from tests.analysis.synthetic import Mode, made_up, shown, with_arm

NASTY = r"$\alpha_{ <b>&amp;--> [red]%s {x} " + "ünï " * 10


def _comparison(mode: Mode = "composed", **changes) -> Comparison:
    return shown(*made_up(mode=mode, **changes))


def _with_nulls() -> Comparison:
    comparison, _ = made_up()
    optional = [each.name for each in fields(ArmRecord) if "None" in str(each.type)]
    nothing: dict[str, Any] = dict.fromkeys(optional) | {
        "step_seconds_mean": math.nan,
        "compute_seconds_median": math.nan,
    }
    arms = tuple(replace(arm, **nothing) for arm in comparison.arms)
    return shown(replace(comparison, arms=arms, links=(), nodes_of_target=None, warm_start_seconds=0.0), {})


def _renamed() -> Comparison:
    comparison, summaries = made_up()
    comparison = with_arm(comparison, "latent", arm=NASTY)
    summaries[NASTY] = replace(summaries.pop("latent"), arm=NASTY)
    first, *others = comparison.links
    return shown(replace(comparison, links=(replace(first, name=NASTY), *others)), summaries)


@pytest.mark.parametrize(
    "comparison",
    [
        pytest.param(_comparison, id="composed"),
        pytest.param(lambda: _comparison("live", nodes=8), id="live"),
        pytest.param(lambda: _comparison("unpaced"), id="unpaced"),
        pytest.param(_with_nulls, id="nulls"),
        pytest.param(_renamed, id="names"),
    ],
)
def test_every_figure_is_written_with_its_data(tmp_path: Path, comparison) -> None:
    """A well-formed svg, a png and a csv for each; our style does not outlast the writing."""
    before = dict(matplotlib.rcParams)
    files = write_figures(comparison(), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert {file.name for file in files} == {f"{name}.{end}" for name in FIGURES for end in ("svg", "png", "csv")}
    for file in files:
        assert file.stat().st_size > 0
        if file.suffix == ".svg":
            ElementTree.parse(file)


@pytest.mark.parametrize("figure", [figure_loss_against_hours, figure_loss_against_step])
@pytest.mark.parametrize("mode", ["composed", "live", "unpaced"])
def test_names_at_line_ends_do_not_overlap(figure, mode: Mode) -> None:
    """Five names, three of them on nearly the same loss: all can be read."""
    drawn = figure(_comparison(mode))
    with styled():
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()  # settles where annotations lie
        labels = [
            text for text in drawn.axes[0].texts if isinstance(text, Annotation) and text.get_fontweight() == "bold"
        ]
        extents = [Text.get_window_extent(text, canvas.get_renderer()) for text in labels]
    assert len(extents) == 5
    assert not any(one.overlaps(other) for one, other in combinations(extents, 2))


@pytest.mark.parametrize(("mode", "kind"), [("composed", "composed"), ("live", "measured")])
def test_line_style_says_what_is_measured(mode: Mode, kind: str) -> None:
    """Measured solid, composed dashed, modelled dotted: read back from the drawn lines."""
    drawn = figure_loss_against_hours(_comparison(mode))
    style = {
        line.get_color(): line._unscaled_dash_pattern  # pyrefly: ignore[missing-attribute]
        for line in drawn.axes[0].lines
        if line.get_marker() != "None"
    }
    expected = {"#000000": "modelled", "#009E73": kind}
    for colour, wanted in expected.items():
        look = KINDS[wanted]
        assert (style[colour][1] and tuple(style[colour][1])) == (None if isinstance(look, str) else look[1])


def test_same_data_same_file(tmp_path: Path) -> None:
    """Figures can be committed: nothing in them but the data."""
    for name in ("one", "other"):
        write_figures(_comparison(), tmp_path / name)
    for figure in FIGURES:
        one, other = ((tmp_path / name / f"{figure}.svg").read_bytes() for name in ("one", "other"))
        assert one == other


def test_a_caption_says_how_many_steps_are_suspect():
    """And nothing where none is."""
    facts, summaries = made_up()
    assert "suspect" not in caption(shown(facts, summaries), "Note.")
    facts = with_arm(with_arm(facts, "centralised", suspect_steps=1), "decentralised", suspect_steps=2)
    facts = with_arm(facts, "subspace", suspect_syncs=1)
    assert "3 steps suspect · 1 synchronisation suspect. Note." in caption(shown(facts, summaries), "Note.")


def test_training_loss_is_drawn_against_time_only_where_nothing_was_validated():
    """Against steps it always is."""
    whole = shown(*made_up())
    without = replace(whole, table=whole.table.assign(val_loss=float("nan")))

    def faint(figure) -> int:
        return sum(line.get_alpha() == 0.4 for line in figure.axes[0].get_lines())

    assert faint(figure_loss_against_hours(whole)) == 0
    assert faint(figure_loss_against_hours(without)) == faint(figure_loss_against_step(whole)) == len(whole.arms)


@pytest.mark.parametrize("draw", [figure_loss_against_hours, figure_loss_against_step, figure_step_time, figure_bytes])
def test_an_arm_that_is_not_valid_says_so_where_its_name_stands(draw):
    """Negative control: one that is valid does not."""
    facts, summaries = made_up()
    facts = with_arm(facts, "subspace", valid=False, why=("its link was changed",))
    comparison = shown(facts, summaries)
    texts = [text.get_text() for text in draw(comparison).findobj(Text)]
    assert any(text.startswith("subspace") and "(not valid)" in text for text in texts)
    assert not any(text.startswith("latent") and "(not valid)" in text for text in texts)
