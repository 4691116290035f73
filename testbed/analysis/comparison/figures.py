"""Every figure of a comparison, by name: a function that draws it, and one for the data it shows."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from testbed.analysis.comparison.bars import data_bytes, data_step_time, figure_bytes, figure_step_time
from testbed.analysis.comparison.curves import (
    data_loss_against_hours,
    data_loss_against_step,
    figure_loss_against_hours,
    figure_loss_against_step,
)
from testbed.analysis.comparison.links import data_links, figure_links
from testbed.analysis.comparison.load import Comparison
from testbed.analysis.plot.style import styled

__all__ = [
    "FIGURES",
    "figure_bytes",
    "figure_links",
    "figure_loss_against_hours",
    "figure_loss_against_step",
    "figure_step_time",
    "write_figures",
]

FIGURES: dict[str, tuple[Callable[[Comparison], Figure], Callable[[Comparison], pd.DataFrame]]] = {
    "loss_against_hours": (figure_loss_against_hours, data_loss_against_hours),
    "loss_against_step": (figure_loss_against_step, data_loss_against_step),
    "step_time": (figure_step_time, data_step_time),
    "bytes_per_step": (figure_bytes, data_bytes),
    "links": (figure_links, data_links),
}
"""The function that draws a figure and the one that tells what it shows, by the name of its files."""


def write_figures(comparison: Comparison, folder: Path | str) -> list[Path]:
    """Write each figure as svg and png, and what it shows as csv, into `folder`; returns the files."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (draw, data) in FIGURES.items():
        figure = draw(comparison)
        with styled():
            figure.savefig(target / f"{name}.svg", metadata={"Date": None})
            figure.savefig(target / f"{name}.png", dpi=200)
        data(comparison).to_csv(target / f"{name}.csv", index=False)
        written += [target / f"{name}.{ending}" for ending in ("svg", "png", "csv")]
    return written
