"""Loss against composed time: the paper's figure 2 at one bandwidth, its figure 14 over all of them."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from testbed.analysis.plot.end_labels import EndLabel, place, place_below
from testbed.analysis.plot.style import INK, KINDS, Look, bottom, canvas, colour, hover, marker, shown, styled
from testbed.analysis.sweep.doubts import HELD, at_first, sweep_caption
from testbed.analysis.sweep.results import Sweep
from testbed.formats import duration, rate, significant, trimmed

__all__ = [
    "data_loss_against_bandwidth",
    "data_loss_against_hours",
    "figure_loss_against_bandwidth",
    "figure_loss_against_hours",
]

_MOST_LINES = 6
"""Of a family of curves; its table holds all."""


def data_loss_against_hours(sweep: Sweep, bandwidth_bps: float | None = None) -> pd.DataFrame:
    """Validation losses against hours at one bandwidth (the middle one) and the first delay: mean over seeds, lowest
    and highest, a row per arm and step."""
    table = data_loss_against_bandwidth(sweep)
    rates = sorted(set(table["bandwidth_bps"]))
    chosen = bandwidth_bps if bandwidth_bps is not None or not rates else rates[len(rates) // 2]
    return table[table["bandwidth_bps"] == chosen]


def data_loss_against_bandwidth(sweep: Sweep) -> pd.DataFrame:
    """The same at every bandwidth."""
    table, _ = at_first(sweep, "bandwidth_bps")
    curves = sweep.curves[sweep.curves["val_loss"].notna()]
    joined = curves.merge(table[["cell", "arm", "seed", *HELD]], on=["cell", "arm", "seed"])
    groups = joined.groupby(["arm", *HELD, "step"], sort=False)
    found = groups.agg(
        val_loss=("val_loss", "mean"),
        val_loss_low=("val_loss", "min"),
        val_loss_high=("val_loss", "max"),
        seeds=("seed", "nunique"),
        time_seconds=("time_seconds", "mean"),
        time_low=("time_low", "min"),
        time_high=("time_high", "max"),
        time_kind=("time_kind", "first"),
    ).reset_index()
    return found.assign(hours=found["time_seconds"] / 3600)


def figure_loss_against_hours(sweep: Sweep, bandwidth_bps: float | None = None) -> Figure:
    """The paper's figure 2: loss against hours of every arm at one point, with the band of its seeds."""
    shown_at = data_loss_against_hours(sweep, bandwidth_bps)
    _, held = at_first(sweep, "bandwidth_bps")
    note = f"Measured: loss of the small model; bands: lowest and highest seed. {_times(shown_at)}"
    with styled():
        where = f" at {rate(float(shown_at['bandwidth_bps'].iloc[0]))}" if len(shown_at) else ""
        caption = sweep_caption(sweep, note, held, learned=True)
        figure, (axes,) = canvas(f"Loss against time{where}", caption, height=5.4)
        ends = []
        for arm in sweep.arms:
            part = shown_at[(shown_at["arm"] == arm) & (shown_at["hours"] > 0)].sort_values("step")
            ends += _loss_line(axes, part, sweep.arms, arm, shown(arm))
        _hours(axes, shown_at)
        place(axes, [label for label, _ in ends], [line for _, line in ends])
        bottom(figure, _time_legend(shown_at))
    return figure


def figure_loss_against_bandwidth(sweep: Sweep) -> Figure:
    """The paper's figure 14: loss against hours for each bandwidth, a panel an arm."""
    table = data_loss_against_bandwidth(sweep)
    _, held = at_first(sweep, "bandwidth_bps")
    first = table[table["hours"] > 0]
    arms = [arm for arm in sweep.arms if arm in set(first["arm"])]
    every = sorted(set(first["bandwidth_bps"]))
    rates = _some(every, _MOST_LINES)
    held += f"{'; ' if held else ''}{len(rates)} of {len(every)} bandwidths" if len(rates) < len(every) else ""
    note = f"Measured: loss of the small model, the same on any link. {_times(first)}"
    with styled():
        figure, panels = canvas(
            "Loss against time by bandwidth",
            sweep_caption(sweep, note, held, learned=True),
            height=4.6,
            columns=max(1, len(arms)),
            wspace=0.06,
        )
        low, high = float(first["val_loss_low"].min()), float(first["val_loss_high"].max())
        for number, (axes, arm) in enumerate(zip(panels, arms, strict=False)):
            ends = []
            for place_, each in enumerate(rates):
                part = first[(first["arm"] == arm) & (first["bandwidth_bps"] == each)]
                strength = 0.35 + 0.65 * (place_ + 1) / len(rates)
                ends += _loss_line(axes, part.sort_values("step"), sweep.arms, arm, rate(each), alpha=strength)
            _hours(axes, first)
            axes.set_ylim(low - 0.45 * (high - low), high + 0.05 * (high - low))
            axes.set_title(shown(arm), fontsize=10.5)
            axes.set_xlabel("hours after the warm start")
            if number:
                axes.set_ylabel("")
                axes.tick_params(axis="y", labelleft=False)
            place_below(axes, [label for label, _ in ends])
        figure.subplots_adjust(top=figure.subplotpars.top - 0.045)
        bottom(figure, _time_legend(first))
    return figure


def _loss_line(
    axes: Axes, part: pd.DataFrame, arms: list[str], arm: str, name: str, *, alpha: float = 1.0
) -> list[tuple[EndLabel, tuple[np.ndarray, np.ndarray]]]:
    if part.empty:
        return []
    tone, kind = colour(arm, arms), str(part["time_kind"].iloc[0])
    x, y = part["hours"].to_numpy(float), part["val_loss"].to_numpy(float)
    look: Look = {"color": tone, "linestyle": KINDS[kind], "marker": marker(arm, arms)}
    (line,) = axes.plot(x, y, **look, markersize=4.5, alpha=alpha)
    hover(line, [_told(arm, row) for row in part.to_dict("records")])
    axes.fill_between(x, part["val_loss_low"], part["val_loss_high"], color=tone, alpha=0.15 * alpha, linewidth=0)
    return [(EndLabel(text=name, x=x[-1], y=y[-1], colour=tone), (x, y))]


def _told(arm: str, row: dict[Hashable, Any]) -> str:
    """What a marker is."""
    seeds = (
        f"mean of {row['seeds']} seeds, {significant(row['val_loss_low'], 4)} to {significant(row['val_loss_high'], 4)}"
    )
    return (
        f"{arm} at {rate(row['bandwidth_bps'])}: {significant(row['val_loss'], 4)} nats after step {row['step']}, "
        f"{duration(row['time_seconds'])} ({seeds})"
    )


def _hours(axes: Axes, table: pd.DataFrame) -> None:
    hours = table["hours"][table["hours"] > 0]
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_xlabel("hours after the warm start")
    if len(hours) and hours.max() > 8 * hours.min():
        axes.set_xscale("log")
        ratio = hours.max() / hours.min()
        axes.set_xlim(hours.min() / ratio**0.05, hours.max() * ratio**0.3)
        axes.xaxis.set_major_formatter(lambda value, _: trimmed(value, 2))
        axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.set_xlabel("hours after the warm start, logarithmic")


def _time_legend(table: pd.DataFrame) -> list[Line2D]:
    words = {
        "measured": "time of a whole training",
        "composed": "time composed of measured steps",
        "modelled": "time over a modelled link",
    }
    return [
        Line2D([], [], color=INK, linestyle=KINDS[kind], label=words.get(kind, kind))
        for kind in KINDS
        if kind in set(table["time_kind"])
    ]


def _times(table: pd.DataFrame) -> str:
    """What times are, in words."""
    kinds = set(table["time_kind"])
    trained = "Measured: time of cells that were trained to the end. " if "measured" in kinds else ""
    return f"{trained}{'Composed: time. ' if 'composed' in kinds else ''}Modelled: compute time."


def _some(values: list[float], most: int) -> list[float]:
    """At most so many, the ends among them, evenly chosen."""
    if len(values) <= most:
        return values
    return [values[round(place_ * (len(values) - 1) / (most - 1))] for place_ in range(most)]
