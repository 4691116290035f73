"""Figures of a sweep over bandwidth and delay: `figure_*(sweep) -> Figure`, each with the table that it shows.

Times are composed of measured steps (dashed) or follow from a closed form (dotted); solid is what was trained to its
end (`--full`). Points are measured; hollow ones lie on a modelled link.
"""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from testbed.analysis.plot.end_labels import EndLabel, place
from testbed.analysis.plot.style import GREY, INK, KINDS, Look, bottom, canvas, colour, hover, marker, shown, styled
from testbed.analysis.sweep.bars import (
    data_breakdown,
    data_bytes,
    data_links,
    data_pareto,
    figure_breakdown,
    figure_bytes,
    figure_links,
    figure_pareto,
)
from testbed.analysis.sweep.curves import (
    data_loss_against_bandwidth,
    data_loss_against_hours,
    figure_loss_against_bandwidth,
    figure_loss_against_hours,
)
from testbed.analysis.sweep.doubts import HELD, at_first, sweep_caption
from testbed.analysis.sweep.results import Sweep
from testbed.formats import percent, rate, significant, trimmed

__all__ = [
    "UTILISATIONS",
    "data_bandwidth_needed",
    "data_loss_against_bandwidth",
    "data_loss_against_hours",
    "data_speedup",
    "data_throughput",
    "figure_bandwidth_needed",
    "figure_loss_against_bandwidth",
    "figure_loss_against_hours",
    "figure_speedup",
    "figure_throughput",
]

_MOST_COLUMNS = 12
"""Of a heat map whose cells hold numbers; its table holds all."""
UTILISATIONS = (0.5, 0.75, 0.9, 0.95, 0.99)


# -- tables


def data_throughput(sweep: Sweep) -> pd.DataFrame:
    """Tokens per second and share of time that computes, a row per arm and bandwidth at the first delay."""
    table, _ = at_first(sweep, "bandwidth_bps")
    columns = ["arm", "bandwidth_bps", "one_way_delay_seconds", "link", "tokens_per_second", "compute_utilisation"]
    columns += ["seconds_per_step", "seconds_per_step_ci95", "resolved"]
    return table.drop_duplicates(["arm", "bandwidth_bps"])[columns].sort_values(["arm", "bandwidth_bps"])


def data_bandwidth_needed(sweep: Sweep) -> pd.DataFrame:
    """The bandwidth at which an arm computes for a given share of its time, a row per arm, delay and share. Projected
    from shaped links; an arm whose link is modelled has no row.

    A step takes a + b/B seconds at bandwidth B: compute and latency, and the bytes. Both follow from the measured
    points by least squares on 1/B, weighted by 1/t² (relative errors are alike). NaN where latency alone takes more.
    """
    table, _ = at_first(sweep, *HELD)
    rows = []
    for (arm, delay), part in table.groupby(["arm", "one_way_delay_seconds"], sort=False):
        part = part[part["link"] == "shaped"].drop_duplicates("bandwidth_bps")
        if len(part) < 2:
            continue
        fixed, per_inverse, worst = _fit(
            part["bandwidth_bps"].to_numpy(float), part["seconds_per_step"].to_numpy(float)
        )
        compute = float(part["compute_seconds_median"].median())
        for share in UTILISATIONS:
            room = compute / share - fixed
            needed = per_inverse / room if room > 0 and per_inverse > 0 else float("nan")
            if per_inverse <= 0 and room >= 0:
                needed = 0.0
            rows.append(
                {
                    "arm": arm,
                    "one_way_delay_seconds": delay,
                    "utilisation": share,
                    "bandwidth_bps": needed,
                    "points": len(part),
                    "largest_residual": worst,
                }
            )
    columns = ["arm", "one_way_delay_seconds", "utilisation", "bandwidth_bps", "points", "largest_residual"]
    return pd.DataFrame(rows, columns=columns)


def _fit(bandwidth: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """a, b of a + b/B, and the largest relative residual. b is no less than 0."""
    weights = 1 / seconds
    design = np.column_stack([np.ones_like(bandwidth), 1 / bandwidth]) * weights[:, None]
    (fixed, slope), *_ = np.linalg.lstsq(design, seconds * weights, rcond=None)
    if slope < 0:
        fixed, slope = float(np.mean(seconds)), 0.0
    residual = np.abs((fixed + slope / bandwidth) / seconds - 1).max()
    return float(fixed), float(slope), float(residual)


def data_speedup(sweep: Sweep, arm: str) -> pd.DataFrame:
    """How much faster a step of `arm` is than the exact exchange's, a row per bandwidth and delay."""
    table, _ = at_first(sweep, *HELD)
    columns = [*HELD, "speedup", "speedup_half", "resolved", "link"]
    return table[table["arm"] == arm].drop_duplicates(list(HELD))[columns].sort_values(list(HELD))


# -- figures


def _bandwidths(axes: Axes, values: pd.Series) -> None:
    axes.set_xscale("log")
    ticks = sorted(set(values))
    axes.set_xticks(ticks, [rate(tick).removesuffix("bit/s") + "bit/s" for tick in ticks])
    axes.minorticks_off()
    if len(ticks) > 1:
        ratio = ticks[-1] / ticks[0]
        axes.set_xlim(ticks[0] / ratio**0.06, ticks[-1] * ratio**0.28)
    axes.set_xlabel("bandwidth of a link, logarithmic")


def figure_throughput(sweep: Sweep) -> Figure:
    """Tokens per second against bandwidth, and where one arm overtakes another."""
    table = data_throughput(sweep)
    _, held = at_first(sweep, "bandwidth_bps")
    note = "Measured: steps on each link; dashed between them. Modelled: compute time (the target's); hollow: the link."
    with styled():
        figure, (axes,) = canvas("Tokens per second against bandwidth", sweep_caption(sweep, note, held), height=5.0)
        _bandwidths(axes, table["bandwidth_bps"])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_ylabel("tokens per second, all nodes, logarithmic")
        figure.subplots_adjust(left=0.105)
        ends = []
        for arm in sweep.arms:
            part = table[table["arm"] == arm]
            x, y = part["bandwidth_bps"].to_numpy(float), part["tokens_per_second"].to_numpy(float)
            if not len(part):
                continue
            tone = colour(arm, sweep.arms)
            axes.plot(x, y, color=tone, linestyle=KINDS["composed"], zorder=2)
            for row in part.to_dict("records"):
                hollow = row["link"] == "modelled"
                face = "white" if hollow else tone
                (dot,) = axes.plot(
                    row["bandwidth_bps"], row["tokens_per_second"], marker(arm, sweep.arms), color=tone,
                    markerfacecolor=face, markersize=6, zorder=3,
                )  # fmt: skip
                computes = f"computes {percent(row['compute_utilisation'])} of the time"
                speed = f"{significant(row['tokens_per_second'])} tokens/s"
                hover(dot, [f"{arm} at {rate(row['bandwidth_bps'])}: {speed}, {computes} ({row['link']} link)"])
            ends.append((EndLabel(text=shown(arm), x=x[-1], y=y[-1], colour=tone), (x, y)))
        for x, y, words in crossovers(table, sweep.record.exact):
            axes.plot(x, y, "o", markersize=11, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.2)
            axes.annotate(words, (x, y), xytext=(6, -16), textcoords="offset points", fontsize=8.5, color=INK)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * 1.3)  # room for the labels of lines that end at the top
        place(axes, [label for label, _ in ends], [line for _, line in ends])
        bottom(figure, _links_legend(table))
    return figure


def _links_legend(table: pd.DataFrame) -> list[Line2D]:
    handles = [Line2D([], [], color=INK, marker="o", linestyle="", label="measured on the shaped link")]
    if (table["link"] == "modelled").any():
        handles.append(
            Line2D([], [], color=INK, marker="o", markerfacecolor="white", linestyle="", label="modelled link")
        )
    return handles


def crossovers(table: pd.DataFrame, exact: str) -> list[tuple[float, float, str]]:
    """Where an arm's tokens per second pass the exact exchange's: between two bandwidths at which their difference is
    resolved, straight in logarithms."""
    found = []
    clear = table[table["resolved"].astype(bool)]
    wide = clear.pivot_table(index="bandwidth_bps", columns="arm", values="tokens_per_second").sort_index()
    if exact not in wide:
        return found
    for arm in wide.columns.drop(exact):
        both = wide[[exact, arm]].dropna()
        gap = np.log((both[arm] / both[exact]).to_numpy(float))
        at = np.log(both.index.to_numpy(float))
        for i in np.nonzero(np.sign(gap[1:]) * np.sign(gap[:-1]) < 0)[0]:
            share = gap[i] / (gap[i] - gap[i + 1])
            x = float(np.exp(at[i] + share * (at[i + 1] - at[i])))
            y = float(np.exp(np.interp(np.log(x), at, np.log(both[exact].to_numpy(float)))))
            first, second = (arm, exact) if gap[i + 1] > 0 else (exact, arm)
            found.append((x, y, f"{first} overtakes {second}\nat about {rate(x, digits=2)}"))
    return found


def figure_bandwidth_needed(sweep: Sweep) -> Figure:
    """The bandwidth that each arm needs to compute for 50 to 99 % of its time, at the first delay."""
    first, held = at_first(sweep, "bandwidth_bps")
    table = data_bandwidth_needed(sweep)
    here = table["one_way_delay_seconds"].isin(set(first["one_way_delay_seconds"]))
    table = table[here & (table["bandwidth_bps"] > 0)]
    note = (
        "Projected: a step is a + b/B seconds, fitted to what was measured on shaped links (largest residual "
        f"{percent(float(table['largest_residual'].max()) if len(table) else None)}). Compute modelled. An arm without "
        "a point needs none, or latency alone takes more."
    )
    with styled():
        figure, (axes,) = canvas(
            "Bandwidth needed for a share of compute", sweep_caption(sweep, note, held), height=4.6
        )
        ends = []
        for arm in sweep.arms:
            part = table[table["arm"] == arm].dropna(subset="bandwidth_bps")
            if not len(part):
                continue
            x, y = 100 * part["utilisation"].to_numpy(float), part["bandwidth_bps"].to_numpy(float)
            tone = colour(arm, sweep.arms)
            look: Look = {"color": tone, "linestyle": KINDS["modelled"], "marker": marker(arm, sweep.arms)}
            (line,) = axes.plot(x, y, **look, markersize=6)
            hover(
                line,
                [f"{arm}: {rate(b)} for {share:g} % of compute (projected)" for share, b in zip(x, y, strict=True)],
            )
            ends.append((EndLabel(text=shown(arm), x=x[-1], y=y[-1], colour=tone), (x, y)))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: rate(value))
        axes.set_xticks([100 * share for share in UTILISATIONS], [f"{100 * share:g} %" for share in UTILISATIONS])
        axes.set_xlim(46, 112)
        axes.set_xlabel("share of a step that computes")
        axes.set_ylabel("bandwidth needed, logarithmic")
        figure.subplots_adjust(left=0.13)
        place(axes, [label for label, _ in ends], [line for _, line in ends])
        bottom(figure, [Line2D([], [], color=INK, linestyle=KINDS["modelled"], label="projected")])
    return figure


def figure_speedup(sweep: Sweep, arm: str) -> Figure:
    """Heat map over bandwidth and delay: the exact exchange's step time over this arm's."""
    table = data_speedup(sweep, arm)
    _, held = at_first(sweep, *HELD)
    exact = sweep.record.exact
    note = (
        f"Seconds per step of {exact} over those of {arm}, synchronisation included; ± 95 % interval, in which the "
        "measured rates' own errors count. ≈: unresolved, it holds 1. (m): the link is modelled. Above 1, exchanging "
        "less pays."
    )
    asked = sweep.table[list(HELD)].dropna()
    rates, delays = sorted(set(asked["bandwidth_bps"])), sorted(set(asked["one_way_delay_seconds"]))
    with styled():
        title = f"Speed-up of {shown(arm)} over {shown(exact)}"
        figure, (axes,) = canvas(title, sweep_caption(sweep, note, held), height=1.6 + 0.55 * max(1, len(delays)))
        figure.subplots_adjust(left=0.105)
        grid = np.full((len(delays), len(rates)), np.nan)
        axes.set_facecolor("#EDEDED")
        for row in table.to_dict("records"):
            place_ = delays.index(row["one_way_delay_seconds"]), rates.index(row["bandwidth_bps"])
            grid[place_] = row["speedup"]
            if len(rates) <= _MOST_COLUMNS:
                _cell(axes, place_, row)
        reach = max(0.1, float(np.nanmax(np.abs(np.log2(grid)))) if np.isfinite(grid).any() else 1.0)
        image = axes.imshow(np.log2(grid), cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto", zorder=0.5)
        if len(rates) > _MOST_COLUMNS:
            figure.colorbar(image, ax=axes, label="log₂ of the speed-up")
            axes.tick_params(axis="x", labelrotation=90)
        for spot in np.argwhere(np.isnan(grid)):
            axes.text(spot[1], spot[0], "no result", ha="center", va="center", fontsize=9, color=GREY)
        axes.set_xticks(range(len(rates)), [rate(each) for each in rates])
        axes.set_yticks(range(len(delays)), [f"{trimmed(1000 * each)} ms" if each else "0 ms" for each in delays])
        axes.set_xlabel("bandwidth of a link")
        axes.set_ylabel("one-way delay")
        axes.grid(visible=False)
    return figure


def _cell(axes: Axes, spot: tuple[int, int], row: dict[Hashable, Any]) -> None:
    if not np.isfinite(row["speedup"]):
        return
    if not np.isfinite(row["speedup_half"]):
        text = "not\nresolved"
    elif not row["resolved"]:
        text = f"≈ 1\n± {significant(row['speedup_half'], 1)}"
    else:
        text = f"{significant(row['speedup'])}×\n± {significant(row['speedup_half'], 1)}"
    text += " (m)" if row["link"] == "modelled" else ""
    axes.text(
        spot[1], spot[0], text, ha="center", va="center", fontsize=9, color=INK, zorder=3,
        bbox={"facecolor": "white", "alpha": 0.72, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


# -- all of them


def sweep_figures(sweep: Sweep) -> dict[str, tuple[Callable[[], Figure], Callable[[], pd.DataFrame]]]:
    """By name: what draws a figure, and the table that it shows. Those that need two bandwidths stay out without; of a
    user's own command there are none."""
    if sweep.of_commands:
        return {}
    found: dict[str, tuple[Callable[[], Figure], Callable[[], pd.DataFrame]]] = {
        "loss_against_hours": (lambda: figure_loss_against_hours(sweep), lambda: data_loss_against_hours(sweep)),
        "loss_against_bandwidth": (
            lambda: figure_loss_against_bandwidth(sweep),
            lambda: data_loss_against_bandwidth(sweep),
        ),
        "throughput": (lambda: figure_throughput(sweep), lambda: data_throughput(sweep)),
        "step_time": (lambda: figure_breakdown(sweep), lambda: data_breakdown(sweep)),
        "bytes_per_step": (lambda: figure_bytes(sweep), lambda: data_bytes(sweep)),
        "quality_against_bytes": (lambda: figure_pareto(sweep), lambda: data_pareto(sweep)),
        "links": (lambda: figure_links(sweep), lambda: data_links(sweep)),
    }
    done = sweep.table[sweep.table["state"] == "done"]
    if done["bandwidth_bps"].nunique() > 1:
        found["bandwidth_needed"] = (lambda: figure_bandwidth_needed(sweep), lambda: data_bandwidth_needed(sweep))
    for arm in sweep.arms:
        if arm != sweep.record.exact and (done["arm"] == arm).any():
            found[f"speedup_{arm}"] = (
                lambda arm=arm: figure_speedup(sweep, arm),
                lambda arm=arm: data_speedup(sweep, arm),
            )
    return found


def write_sweep_figures(sweep: Sweep, folder: Path) -> list[Path]:
    """Write each as svg and png, and what it shows as csv; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (draw, data) in sweep_figures(sweep).items():
        figure = draw()
        with styled():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=200)
        data().to_csv(folder / f"{name}.csv", index=False)
        written += [folder / f"{name}.{ending}" for ending in ("svg", "png", "csv")]
    return written
