"""The figure of `testbed learn`: how much of what an exchange is worth each arm recovers, against its bytes."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from testbed.analysis.formats import trimmed
from testbed.analysis.style import GREY, INK, bottom, canvas, shown, styled

__all__ = ["data_recovered", "figure_recovered"]

Record = dict[str, Any]
_LOOKS: dict[str, dict[str, Any]] = {
    "codec": {"marker": "o", "color": "#0072B2", "markersize": 6},
    "null": {"marker": "o", "color": "#0072B2", "markerfacecolor": "white", "markersize": 6},
    "exact": {"marker": "s", "color": "#D55E00", "markersize": 6},
    "none": {"marker": "v", "color": "#CC79A7", "markersize": 6},
    "whole": {"marker": "*", "color": "#E69F00", "markersize": 11},
}
_WORDS = {
    "codec": "codec",
    "null": "null of the same bytes",
    "exact": "exact",
    "none": "no exchange",
    "whole": "whole sequences, no exchange",
}
_NULLS = ("recent", "random")
_CAPTION = (
    "Recovered: (control − arm) / (control − exact) in loss on tokens whose evidence lies on another node, seed by "
    "seed at equal tokens; mean and 95 % interval (Student's t over seeds). Bytes of one token, layer and direction to "
    "one peer, in closed form. Measured, off the network: links change time, not losses."
)
_LOWEST = -0.35  # what lies deeper is drawn at the edge, with its figure


def data_recovered(record: Record) -> pd.DataFrame:
    """What `figure_recovered` shows: a row per preset and arm."""
    rows = [
        {
            "preset": preset["preset"],
            "arm": arm["arm"],
            "kind": _kind(arm),
            "bytes": arm["bytes_forward"],
            "recovered": arm["recovered_loss"]["mean"],
            "half": arm["recovered_loss"]["half"],
            "seeds": arm["recovered_loss"]["count"],
            "shows": preset["shows"],
        }
        for preset in record["presets"]
        for arm in preset["arms"]
        if arm["recovered_loss"] is not None
    ]
    return pd.DataFrame(rows, columns=["preset", "arm", "kind", "bytes", "recovered", "half", "seeds", "shows"])


def _kind(arm: Record) -> str:
    if arm["split"] == "batch":
        return "whole"
    if arm["exchange"] == "local":
        return "none"
    if arm["codec"].partition("+")[0] in _NULLS:
        return "null"
    return "exact" if arm["codec"] == "exact" else "codec"


def figure_recovered(record: Record) -> Figure:
    """One panel per preset; bytes on a logarithmic axis with a place of its own for none."""
    table = data_recovered(record)
    presets = list(dict.fromkeys(table["preset"]))
    with styled():
        figure, axes = canvas(shown(record["title"], 90), _CAPTION, height=4.9, columns=len(presets), wspace=0.06)
        sent = table["bytes"][table["bytes"] > 0]
        low, high = (float(sent.min()), float(sent.max())) if len(sent) else (1.0, 10.0)
        for number, (one, preset) in enumerate(zip(axes, presets, strict=True)):
            rows = table[table["preset"] == preset]
            _frame(one, preset, low, high, first=number == 0, shows=bool(rows["shows"].iloc[0]))
            _points(one, rows, nowhere=low / 3)
        kinds = [kind for kind in _LOOKS if kind in set(table["kind"])]
        bottom(figure, [Line2D([], [], linestyle="none", label=_WORDS[kind], **_LOOKS[kind]) for kind in kinds])
        figure.subplots_adjust(top=figure.subplotpars.top - 0.045)
    return figure


def _frame(one: Axes, preset: str, low: float, high: float, *, first: bool, shows: bool) -> None:
    one.set_xscale("log")
    one.set_xlim(low / 5, high * 3)
    one.set_ylim(_LOWEST - 0.05, 1.19)
    ticks = [low / 3, *(2.0**power for power in range(2, 16) if low * 0.8 <= 2.0**power <= high * 1.3 and power % 2)]
    one.set_xticks(ticks, ["none", *(trimmed(tick) for tick in ticks[1:])])
    one.minorticks_off()
    for level in (0, 1):
        one.axhline(level, color=GREY, linewidth=1.0, zorder=1)
    one.set_title(preset if shows else f"{preset}: shows nothing", fontsize=10.5)
    one.set_xlabel("bytes per token and layer")
    if first:
        one.set_ylabel("recovered of what exchange is worth")
    else:
        one.tick_params(axis="y", labelleft=False)


def _points(one: Axes, rows: pd.DataFrame, *, nowhere: float) -> None:
    """Every arm, with its name where there is room for it."""
    taken: list[tuple[float, float]] = []
    for row in rows.sort_values("recovered", ascending=False).to_dict("records"):
        x = row["bytes"] if row["bytes"] > 0 else nowhere
        y = max(row["recovered"], _LOWEST)
        half = row["half"] if pd.notna(row["half"]) and y == row["recovered"] else None
        look = _LOOKS[row["kind"]]
        one.errorbar(x, y, yerr=half, linestyle="none", capsize=2.5, elinewidth=1.1, **look)  # pyrefly: ignore
        name = shown(row["arm"], 18)
        if y != row["recovered"]:
            name += f" {row['recovered']:.2f} ▾".replace("-", "−")
        one.annotate(
            name,
            (x, y),
            xytext=_place(one, x, y, taken),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            va="center",
            zorder=4,
        )


def _place(one: Axes, x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """Right of the point, moved down until no earlier name of the same neighbourhood is there."""
    height = one.get_window_extent().height / (one.get_ylim()[1] - one.get_ylim()[0]) * 72 / one.figure.dpi
    where = y * height
    while any(abs(where - other) < 9 for at, other in taken if 1 / 8 < at / x < 8):
        where -= 2
    taken.append((x, where))
    return 7, where - y * height
