"""Figures of loss: against hours, which a link decides, and against steps, which it does not."""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from testbed.analysis.comparison.arm_names import arm_names, shown_arms
from testbed.analysis.comparison.captions import caption, kinds_sentence
from testbed.analysis.comparison.load import Comparison
from testbed.analysis.plot.end_labels import EndLabel, place
from testbed.analysis.plot.style import (
    GREY,
    INK,
    KINDS,
    Look,
    bottom,
    canvas,
    colour,
    hover,
    kind_legend,
    marker,
    styled,
)
from testbed.formats import duration, significant

__all__ = [
    "data_loss_against_hours",
    "data_loss_against_step",
    "figure_loss_against_hours",
    "figure_loss_against_step",
]

_SMOOTH_STEPS = 15
_LOG_FROM = 8  # hours are drawn on a logarithm when arms differ by more than this
_WORDS = {
    "measured": "time measured",
    "composed": "time composed of measured steps",
    "modelled": "time over a modelled link",
}


def data_loss_against_hours(comparison: Comparison) -> pd.DataFrame:
    """What `figure_loss_against_hours` shows: the table, with the warm start's time in `hours`."""
    warm = comparison.record.warm_start_seconds
    table = comparison.table.assign(warm_start_seconds=warm)
    for name in ("time", "low", "high"):
        column = "time_seconds" if name == "time" else f"time_{name}"
        table["hours" if name == "time" else f"hours_{name}"] = (
            table[column] + comparison.record.warm_start_seconds
        ) / 3600
    return table


def data_loss_against_step(comparison: Comparison) -> pd.DataFrame:
    """What `figure_loss_against_step` shows."""
    return comparison.table[["arm", "step", "loss", "val_loss", "loss_kind"]]


def figure_loss_against_hours(comparison: Comparison) -> Figure:
    """Validation loss against time, warm start included; training loss, faint, where nothing was validated."""
    table = data_loss_against_hours(comparison)
    longest = float(table["hours"].max()) if table["hours"].notna().any() else 1.0
    factor, unit = (1.0, "hours") if longest > 0.15 else (60.0, "minutes")
    table = table.assign(x=table["hours"] * factor, low=table["hours_low"] * factor, high=table["hours_high"] * factor)
    with styled():
        figure, axes = canvas("Loss against time", caption(comparison, kinds_sentence(comparison)), height=5.6)
        training = bool(table["val_loss"].isna().all())
        ends = _curves(axes[0], comparison, table, lambda kind: KINDS[kind], key="time_kind", training=training)
        _time_axis(axes[0], comparison, table, factor, unit)
        lines = _line_kinds()[training : 1 + training]
        _finish(figure, axes[0], ends, [*kind_legend(sorted(set(table["time_kind"])), _WORDS), *lines])
    return figure


def figure_loss_against_step(comparison: Comparison) -> Figure:
    """Loss against steps after the warm start: the same on any link."""
    table = data_loss_against_step(comparison)
    table = table.assign(x=table["step"].astype(float), low=np.nan, high=np.nan)
    with styled():
        figure, axes = canvas(
            "Loss against step",
            caption(comparison, "Measured: loss of the small model, the same on any link."),
            height=5.6,
        )
        ends = _curves(axes[0], comparison, table, lambda kind: KINDS[kind], key="loss_kind", training=True)
        axes[0].set_xlabel("steps after the warm start")
        if len(table):
            axes[0].set_xlim(0, float(table["step"].max()) * 1.26 + 1)
            axes[0].set_xticks([tick for tick in axes[0].get_xticks() if tick <= table["step"].max()])
        _finish(figure, axes[0], ends, [*kind_legend(["measured"], {"measured": "loss measured"}), *_line_kinds()])
    return figure


def _line_kinds() -> list[Line2D]:
    return [
        Line2D([], [], color=INK, marker="o", markersize=5, linestyle="", label="validation"),
        Line2D([], [], color=INK, alpha=0.4, linewidth=1, label=f"thin: training (mean of {_SMOOTH_STEPS})"),
    ]


def _curves(
    axes: Axes, comparison: Comparison, table: pd.DataFrame, style: Callable[[str], Any], *, key: str, training: bool
) -> list[tuple[EndLabel, tuple[np.ndarray, np.ndarray]]]:
    """Draw each arm's lines; returns a label and the validated line of each arm that has one."""
    names, called, ends = arm_names(comparison), shown_arms(comparison), []
    for name in names:
        rows = table[(table["arm"] == name) & table["x"].notna()].sort_values("step")
        if rows.empty:
            continue
        look: Look = {"color": colour(name, names), "linestyle": style(rows[key].iloc[0])}
        if training:
            smooth = rows["loss"].rolling(_SMOOTH_STEPS, min_periods=_SMOOTH_STEPS, center=True).mean()
            axes.plot(rows["x"], smooth, **look, alpha=0.4, linewidth=1, zorder=1.5)
        valid = rows[rows["val_loss"].notna()]
        if valid.empty:
            continue
        (line,) = axes.plot(valid["x"], valid["val_loss"], **look, marker=marker(name, names), markersize=5.5, zorder=3)
        hover(line, [_told(name, row) for row in valid.to_dict("records")])
        axes.fill_betweenx(valid["val_loss"], valid["low"], valid["high"], color=look["color"], alpha=0.18, linewidth=0)
        x, y = valid["x"].to_numpy(float), valid["val_loss"].to_numpy(float)
        text = f"{called[name]} {significant(y[-1], 4)}"
        ends.append((EndLabel(text=text, x=x[-1], y=y[-1], colour=look["color"]), (x, y)))
    return ends


def _told(name: str, row: dict[Hashable, Any]) -> str:
    """What a marker is."""
    when = f", {duration(row['time_seconds'])} after the warm start" if row.get("time_seconds") else ""
    return f"{name}: {significant(row['val_loss'], 4)} nats after step {row['step']}{when}"


def _time_axis(axes: Axes, comparison: Comparison, table: pd.DataFrame, factor: float, unit: str) -> None:
    """Limits and scale of the time axis, and the warm start's span on it."""
    warm = comparison.record.warm_start_seconds / 3600 * factor
    last = table.groupby("arm")["x"].max().dropna()
    last = last[last > 0]
    if len(last) and last.max() > _LOG_FROM * last.min():
        first = warm or float(table["x"][table["x"] > 0].min())
        ratio = last.max() / first
        axes.set_xscale("log")
        axes.set_xlim(first / ratio**0.07, last.max() * ratio**0.25)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(
            lambda value, _: significant(value, 2).rstrip("0").rstrip(".") if value < 1 else f"{value:g}"
        )
        axes.xaxis.set_minor_formatter(lambda *_: "")
        unit += ", logarithmic"
    elif len(last):
        left = max(0.0, warm - 0.15 * (last.max() - warm))
        axes.set_xlim(left, last.max() + 0.36 * (last.max() - left))
        axes.xaxis.set_major_locator(MaxNLocator(6, prune="upper"))  # its number would reach beyond the figure
    axes.set_xlabel(f"time ({unit})")
    if warm:
        kind = comparison.record.warm_start_kind
        axes.axvspan(axes.get_xlim()[0], warm, color="#EDEDED", zorder=0.5, linewidth=0)
        axes.axvline(warm, color=GREY, linestyle=KINDS.get(kind, "-"), linewidth=1, zorder=0.6)
        text = f"warm start, {kind}, {duration(comparison.record.warm_start_seconds)}"
        axes.annotate(
            text,
            (warm, 0.985),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-4, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            fontsize=9,
            color="#555555",
            va="top",
        )


def _finish(
    figure: Figure,
    axes: Axes,
    ends: list[tuple[EndLabel, tuple[np.ndarray, np.ndarray]]],
    handles: list[Line2D],
) -> None:
    axes.set_ylabel("loss (nats per token)")
    if not ends:
        axes.text(0.5, 0.5, "no validation loss to show", transform=axes.transAxes, ha="center", color=GREY)
    bottom(figure, handles)
    axes.set_xlim(axes.get_xlim())
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.06 * (high - low), high)  # room for a name below the lowest line
    place(axes, [label for label, _ in ends], [line for _, line in ends])
