"""The figure of `testbed learn`: how much of what an exchange is worth each arm recovers, against its bytes."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from testbed.analysis.plot.style import GREY, INK, Look, bottom, canvas, shown, styled
from testbed.formats import trimmed
from testbed.records import ArmQuality, QualityRecord

__all__ = ["data_recovered", "figure_recovered"]

_LOOKS: dict[str, Look] = {
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


def data_recovered(record: QualityRecord) -> pd.DataFrame:
    """What `figure_recovered` shows: a row per preset and arm."""
    rows = [
        {
            "preset": preset.preset,
            "arm": arm.arm,
            "kind": _kind(arm),
            "bytes": arm.bytes_forward,
            "recovered": arm.recovered_loss.mean,
            "half": arm.recovered_loss.half,
            "seeds": arm.recovered_loss.count,
            "shows": preset.shows,
        }
        for preset in record.presets
        for arm in preset.arms
        if arm.recovered_loss is not None
    ]
    return pd.DataFrame(rows, columns=["preset", "arm", "kind", "bytes", "recovered", "half", "seeds", "shows"])


def _kind(arm: ArmQuality) -> str:
    if arm.split == "batch":
        return "whole"
    if arm.exchange == "local":
        return "none"
    if arm.exchange == "ids" or arm.codec.partition("+")[0] in _NULLS:
        return "null"
    return "exact" if arm.codec == "exact" else "codec"


def figure_recovered(record: QualityRecord) -> Figure:
    """One panel per preset; bytes on a logarithmic axis with a place of its own for none."""
    table = data_recovered(record)
    presets = list(dict.fromkeys(table["preset"]))
    with styled():
        figure, axes = canvas(shown(record.title, 90), _CAPTION, height=4.9, columns=len(presets), wspace=0.06)
        sent = table["bytes"][table["bytes"] > 0]
        low, high = (float(sent.min()), float(sent.max())) if len(sent) else (1.0, 10.0)
        for number, (one, preset) in enumerate(zip(axes, presets, strict=True)):
            rows = table[table["preset"] == preset]
            _frame(one, preset, low, high, first=number == 0, shows=bool(rows["shows"].ne(False).all()))
            _points(one, rows, nowhere=low / 3, plain=(record.exact, record.control))
        kinds = [kind for kind in _LOOKS if kind in set(table["kind"])]
        bottom(figure, [Line2D([], [], linestyle="none", label=_WORDS[kind], **_LOOKS[kind]) for kind in kinds])
        figure.subplots_adjust(top=figure.subplotpars.top - 0.045)
    return figure


def _frame(one: Axes, preset: str, low: float, high: float, *, first: bool, shows: bool) -> None:
    one.set_xscale("log")
    one.set_xlim(low / 5, high * 4)
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


def _points(one: Axes, rows: pd.DataFrame, *, nowhere: float, plain: tuple[str, str]) -> None:
    """Every arm, with its name beside it where nothing else is; what the legend names, `plain`, goes without."""
    rows = rows.assign(x=rows["bytes"].where(rows["bytes"] > 0, nowhere), y=rows["recovered"].clip(lower=_LOWEST))
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in _in_points(one, rows[["x", "y"]].to_numpy())]
    for row in rows.sort_values("recovered", ascending=False).to_dict("records"):
        cut = row["y"] != row["recovered"]
        half = row["half"] if pd.notna(row["half"]) and not cut else None
        look = _LOOKS[row["kind"]]
        one.errorbar(row["x"], row["y"], yerr=half, linestyle="none", capsize=2.5, elinewidth=1.1, **look)  # pyrefly: ignore
        if row["arm"] in plain:
            continue
        name = shown(row["arm"], 20) + (f" {row['recovered']:.2f} ▾".replace("-", "−") if cut else "")
        (at,) = _in_points(one, [(row["x"], row["y"])])
        shift = _room(one, at, name, taken)
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 3} if abs(shift[1]) > 8 else None
        one.annotate(
            name,
            (row["x"], row["y"]),
            xytext=shift,
            textcoords="offset points",
            fontsize=8,
            color=INK,
            va="center",
            arrowprops=line,
        )


def _in_points(one: Axes, places: Any) -> Any:
    """Where places lie on the figure, in points."""
    return one.transData.transform(places) * 72 / one.figure.dpi


def _room(one: Axes, at: Any, name: str, taken: list[Bbox]) -> tuple[float, float]:
    """The nearest place for a name, right or left of its point, that is free and inside the panel."""
    width, panel = 4.5 * len(name), one.get_window_extent().frozen()
    right_edge = panel.x1 * 72 / one.figure.dpi + 4
    places = [(side, rise) for rise in sorted(range(-60, 61, 3), key=abs) for side in (7.0, -7.0 - width)]
    for side, rise in places:
        x, y = at[0] + side, at[1] + rise
        box = Bbox.from_extents(x, y - 5, x + width, y + 5)
        inside = box.x1 < right_edge and box.x0 > panel.x0 * 72 / one.figure.dpi
        if inside and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return side, float(rise)
    return 7.0, 0.0
