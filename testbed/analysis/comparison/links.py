"""The figure that says whether the links were what was asked."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from testbed.analysis.comparison.captions import caption
from testbed.analysis.comparison.load import Comparison
from testbed.analysis.plot.style import GREY, INK, bottom, canvas, shown, styled
from testbed.formats import MISSING, counted, percent

__all__ = ["data_links", "figure_links", "rates_words"]

_LOADS = {"alone": ("#0072B2", -0.16), "together": ("#D55E00", 0.16)}
_PHASES = {"preflight": "s", "before": "o", "after": "^"}
_PHASE_NAMES = {"preflight": "before learning", "before": "before timing", "after": "after"}
_NAMED = 24  # more links than this share a height, and are not named


def data_links(comparison: Comparison) -> pd.DataFrame:
    """What `figure_links` shows: a row per link, phase and load, and how far its goodput is off."""
    rows = [
        {
            "link": link.name,
            "direction": link.direction,
            "phase": link.phase,
            "load": load,
            "expected_bps": link.expected_bps,
            "measured_bps": measured,
        }
        for link in comparison.record.links
        for load, measured in (("alone", link.alone_bps), ("together", link.together_bps))
    ]
    table = pd.DataFrame(rows, columns=["link", "direction", "phase", "load", "expected_bps", "measured_bps"])
    table = table.assign(**{name: table[name].astype(float) for name in ("expected_bps", "measured_bps")})
    return table.assign(deviation=table["measured_bps"] / table["expected_bps"] - 1)


def figure_links(comparison: Comparison) -> Figure:
    """Each link's measured goodput against the expected, alone and all at once, before and after."""
    table = data_links(comparison)
    table = table[np.isfinite(table["deviation"])]
    names = list(dict.fromkeys(zip(table["link"], table["direction"], strict=True)))
    note = "Measured: goodput of every link. Expected: what headers leave of the asked rate."
    with styled():
        height = 1.9 + (0.21 * len(names) if len(names) <= _NAMED else 0.07 * len(names))
        figure, axes = canvas("Links: asked against measured", caption(comparison, note), height=max(2.6, height))
        _bands(axes[0], table)
        if len(names) <= _NAMED:
            axes[0].set_yticks(range(len(names)), [_link_label(*name) for name in names])
        else:
            axes[0].set_yticks([])
            axes[0].set_ylabel(f"{len(names)} links, one per row")
        _dots(axes[0], table, names)
        axes[0].set_ylim(max(len(names), 1) - 0.4, -0.6)
        axes[0].set_xlabel("measured goodput against expected (%)")
        if table.empty:
            axes[0].text(0.5, 0.5, "no shaped link was measured", transform=axes[0].transAxes, ha="center", color=GREY)
        longest = max((len(_link_label(*name)) for name in names), default=0) if len(names) <= _NAMED else 0
        figure.subplots_adjust(left=0.045 + 0.0088 * longest)
        bottom(figure, _legend(table))
    return figure


def _link_label(name: str, direction: str | None) -> str:
    name = name.replace("->", " → ")
    return shown(name) if direction in (None, "pair") else f"{shown(name)} {direction}"


def _bands(axes: Axes, table: pd.DataFrame) -> None:
    for half, tone in ((2, "#F3F3F3"), (1, "#DDEEDD")):
        axes.axvspan(-half, half, color=tone, zorder=0.4, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0.6)
    widest = 100 * float(table["deviation"].abs().max()) if len(table) else 0.0
    axes.set_xlim(-max(2.4, 1.1 * widest), max(2.4, 1.1 * widest))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")


def _dots(axes: Axes, table: pd.DataFrame, names: list[tuple[str, str]]) -> None:
    rows = {name: row for row, name in enumerate(names)}
    for (load, phase), part in table.groupby(["load", "phase"]):
        tone, shift = _LOADS[str(load)]
        y = np.array([rows[name] for name in zip(part["link"], part["direction"], strict=True)], dtype=float)
        axes.plot(
            100 * part["deviation"],
            y + shift + (0.07 if phase == "after" else -0.07),
            _PHASES.get(str(phase), "s"),
            color=tone,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
        )


def _legend(table: pd.DataFrame) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=tone, marker="o", linestyle="", label="alone" if load == "alone" else "all at once")
        for load, (tone, _) in _LOADS.items()
    ]
    handles += [
        Line2D([], [], color=INK, marker=shape, linestyle="", label=_PHASE_NAMES[phase])
        for phase, shape in _PHASES.items()
        if phase in set(table["phase"])
    ]
    return [*handles, Patch(color="#DDEEDD", label="± 1 %"), Patch(color="#F3F3F3", label="± 2 %")]


def rates_words(comparison: Comparison) -> str:
    """How many goodputs were measured, and how far the worst is off."""
    table = data_links(comparison).dropna(subset=["deviation"])
    links = len(table[["link", "direction"]].drop_duplicates())
    counts = f"{counted(links, 'link')} × {counted(table['load'].nunique(), 'load')}"
    counts += f" × {counted(table['phase'].nunique(), 'phase')}"
    worst = percent(float(table["deviation"].abs().max())) if len(table) else MISSING
    return f"{counts}, the worst {worst} off: the numbers of this figure"
