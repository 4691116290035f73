"""More figures of a sweep: what a step is made of, its bytes, quality against bytes, how true each point's link was."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from testbed.analysis.plot.end_labels import EndLabel, place
from testbed.analysis.plot.style import GREY, INK, KINDS, Look, bottom, canvas, colour, hover, marker, shown, styled
from testbed.analysis.sweep.doubts import at_first, sweep_caption
from testbed.analysis.sweep.results import Sweep
from testbed.formats import rate, significant, size, trimmed

__all__ = [
    "data_breakdown",
    "data_bytes",
    "data_links",
    "data_pareto",
    "figure_breakdown",
    "figure_bytes",
    "figure_links",
    "figure_pareto",
]

_PARTS = {"compute": "#C9C9C9", "exchange": "#0072B2", "synchronisation": "#E69F00"}


def data_breakdown(sweep: Sweep) -> pd.DataFrame:
    """Seconds of a step by part, a row per arm and bandwidth at the first delay."""
    table, _ = at_first(sweep, "bandwidth_bps")
    table = table.drop_duplicates(["arm", "bandwidth_bps"])
    return pd.DataFrame(
        {
            "arm": table["arm"],
            "bandwidth_bps": table["bandwidth_bps"],
            "compute": table["compute_seconds_median"],
            "exchange": table["exchange_seconds_median"],
            "synchronisation": table["sync_seconds_per_step"].fillna(0.0),
            "link": table["link"],
        }
    ).sort_values(["bandwidth_bps", "arm"])


def figure_breakdown(sweep: Sweep) -> Figure:
    """Shares of a step's time, a bar per bandwidth and arm; seconds at its end."""
    table = data_breakdown(sweep)
    _, held = at_first(sweep, "bandwidth_bps")
    note = "Hatched is modelled: compute (the target's), and what a modelled link took. The rest is measured."
    rows = [row for _, part in table.groupby("bandwidth_bps") for row in _in_order(part, sweep.arms)]
    with styled():
        figure, (axes,) = canvas(
            "Where the time of a step goes", sweep_caption(sweep, note, held), height=1.4 + 0.27 * len(rows)
        )
        for number, row in enumerate(rows):
            total, left = sum(row[part] for part in _PARTS), 0.0
            for part, tone in _PARTS.items():
                share = row[part] / total
                modelled = part == "compute" or row["link"] == "modelled"
                look: Look = {
                    "facecolor": "white",
                    "edgecolor": "#8A8A8A" if part == "compute" else tone,
                    "hatch": "////",
                }
                solid: Look = {"facecolor": tone, "edgecolor": INK}
                (bar,) = axes.barh(number, share, left=left, height=0.7, linewidth=0.6, **(look if modelled else solid))
                hover(bar, [f"{row['arm']} at {rate(row['bandwidth_bps'])}: {part} {significant(row[part])} s"])
                left += share
            axes.text(1.01, number, f"{significant(total)} s", va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), [f"{rate(row['bandwidth_bps'])}  {shown(row['arm'], 16)}" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.1)
        axes.set_xticks(np.linspace(0, 1, 6), [f"{100 * x:.0f} %" for x in np.linspace(0, 1, 6)])
        axes.set_xlabel("share of a step")
        axes.grid(axis="y", visible=False)
        figure.subplots_adjust(left=0.24)
        handles = [
            Patch(facecolor="white", edgecolor="#8A8A8A", hatch="////", label="compute, modelled"),
            *(Patch(facecolor=tone, edgecolor=INK, label=part) for part, tone in _PARTS.items() if part != "compute"),
        ]
        bottom(figure, handles)
    return figure


def _in_order(part: pd.DataFrame, arms: list[str]) -> list[dict]:
    return sorted(part.to_dict("records"), key=lambda row: arms.index(row["arm"]))


_BYTES = ("kv_payload_bytes_per_step", "wire_bytes_per_step", "sync_wire_bytes_each")


def data_bytes(sweep: Sweep) -> pd.DataFrame:
    """Bytes that a node sends to each peer in a step, a row per arm: they are the same on every link, and, with
    accounting pair, to every peer, of which a node of the target has more than are timed."""
    done = at_first(sweep)[0].drop_duplicates("arm")
    peers = done["nodes"] - 1
    columns = {f"{name}_and_peer" if "step" in name else f"{name}_per_peer": done[name] / peers for name in _BYTES}
    return pd.DataFrame({"arm": done["arm"], **columns, "sync_every": done["sync_every"]}).reset_index(drop=True)


def figure_bytes(sweep: Sweep) -> Figure:
    """K and V payload, and all that is on the wire, by arm."""
    table = data_bytes(sweep)
    note = (
        "Measured: payload as handed to the sockets, filled up to the target's size; the wire as the queues count it."
    )
    kinds = {
        "kv_payload_bytes_per_step_and_peer": ("#0072B2", "o", "K, V and their gradients"),
        "wire_bytes_per_step_and_peer": (INK, "D", "on the wire"),
    }
    with styled():
        figure, (axes,) = canvas("Bytes of a step", sweep_caption(sweep, note), height=1.6 + 0.5 * max(1, len(table)))
        for number, row in enumerate(table.to_dict("records")):
            for shift, (key, (tone, shape, word)) in zip((-0.16, 0.16), kinds.items(), strict=True):
                count = row[key]
                if not count or np.isnan(count):
                    continue
                (dot,) = axes.plot(count, number + shift, shape, color=tone, markersize=6)
                axes.annotate(
                    size(count),
                    (count, number + shift),
                    xytext=(7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
                hover(dot, [f"{row['arm']}: {size(count)}, {word}"])
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: size(value))
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.5, high * 4)
        axes.set_yticks(range(len(table)), [shown(arm) for arm in table["arm"]])
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.set_xlabel("bytes that a node sends to each peer in a step, logarithmic")
        figure.subplots_adjust(left=0.16)
        bottom(
            figure,
            [
                Line2D([], [], color=tone, marker=shape, linestyle="", label=word)
                for tone, shape, word in kinds.values()
            ],
        )
    return figure


_APART = 1.3
"""Of two ticks on a logarithmic axis, for their numbers to stand side by side."""


def data_pareto(sweep: Sweep) -> pd.DataFrame:
    """Validation loss against K and V bytes, a row per arm: mean, lowest and highest seed."""
    table, _ = at_first(sweep)
    groups = table.groupby("arm", sort=False)
    found = groups.agg(
        kv_payload_bytes_per_step=("kv_payload_bytes_per_step", "first"),
        peers=("nodes", "first"),
        val_loss=("val_loss", "mean"),
        val_loss_low=("val_loss", "min"),
        val_loss_high=("val_loss", "max"),
        recovered_fraction=("recovered_fraction", "mean"),
        seeds=("seed", "nunique"),
    )
    found["kv_payload_bytes_per_step"] /= found.pop("peers") - 1
    return found.rename(columns={"kv_payload_bytes_per_step": "kv_payload_bytes_per_step_and_peer"}).reset_index()


def figure_pareto(sweep: Sweep) -> Figure:
    """Quality against bytes, with the control, which sends none, and the spread of seeds."""
    table = data_pareto(sweep)
    _, held = at_first(sweep)
    note = (
        "Measured: loss of the small model, bars: lowest and highest seed; bytes as the target's. control: no exchange."
    )
    with styled():
        figure, (axes,) = canvas("Quality against bytes", sweep_caption(sweep, note, held, learned=True), height=4.6)
        sent = table["kv_payload_bytes_per_step_and_peer"][table["kv_payload_bytes_per_step_and_peer"] > 0]
        nothing = float(sent.min()) / 6 if len(sent) else 1.0
        labels = []
        for row in table.to_dict("records"):
            x, y = row["kv_payload_bytes_per_step_and_peer"] or nothing, row["val_loss"]
            tone = colour(row["arm"], sweep.arms)
            spread = [[y - row["val_loss_low"]], [row["val_loss_high"] - y]]
            axes.errorbar(x, y, yerr=spread, color=tone, capsize=3, linewidth=1.2, linestyle="none")
            (dot,) = axes.plot(x, y, marker(row["arm"], sweep.arms), color=tone, markersize=7)
            share = f", recovers {trimmed(row['recovered_fraction'])}" if np.isfinite(row["recovered_fraction"]) else ""
            hover(
                dot,
                [f"{row['arm']}: {significant(y, 4)} nats, {size(row['kv_payload_bytes_per_step_and_peer'])}{share}"],
            )
            labels.append(EndLabel(text=shown(row["arm"]), x=x, y=y, colour=tone))
        axes.set_xscale("log")
        ticks = [nothing]
        for tick in sorted(set(sent)):
            ticks += [tick] if tick > _APART * ticks[-1] else []
        axes.set_xticks(ticks, ["none", *(size(tick) for tick in ticks[1:])])
        axes.minorticks_off()
        axes.set_xlim(ticks[0] / 2, max([ticks[0], *sent]) * 6)
        axes.set_xlabel("K and V bytes that a node sends to each peer in a step, logarithmic")
        axes.set_ylabel("validation loss (nats per token)")
        place(axes, labels, [(np.array([label.x]), np.array([label.y])) for label in labels])
    return figure


def data_links(sweep: Sweep) -> pd.DataFrame:
    """Asked and measured rate of every point with a shaped link."""
    done = sweep.table[(sweep.table["state"] == "done") & (sweep.table["link"] == "shaped")]
    table = done.drop_duplicates("point")[["point", "rate_bps", "rate_measured_bps", "one_way_delay_seconds"]]
    return table.assign(deviation=table["rate_measured_bps"] / table["rate_bps"] - 1).reset_index(drop=True)


def figure_links(sweep: Sweep) -> Figure:
    """How far each point's measured rate is from the asked one."""
    table = data_links(sweep)
    note = "Measured before and after each point's timed steps; more than 2 % off ends it. Modelled links are not here."
    with styled():
        figure, (axes,) = canvas(
            "Links: asked against measured", sweep_caption(sweep, note), height=1.5 + 0.24 * max(2, len(table))
        )
        for half, tone in ((2, "#F3F3F3"), (1, "#DDEEDD")):
            axes.axvspan(-half, half, color=tone, zorder=0.4, linewidth=0)
        axes.axvline(0, color=GREY, linewidth=0.8)
        for number, row in enumerate(table.to_dict("records")):
            (dot,) = axes.plot(100 * row["deviation"], number, "o", color="#0072B2", markersize=5.5)
            hover(dot, [f"{row['point']}: {rate(row['rate_measured_bps'], digits=5)} of {rate(row['rate_bps'])}"])
        axes.set_yticks(range(len(table)), [shown(point, 34) for point in table["point"]])
        axes.set_ylim(max(len(table), 1) - 0.4, -0.6)
        axes.set_xlim(-2.4, 2.4)
        axes.set_xlabel("measured rate against asked (%)")
        figure.subplots_adjust(left=0.27)
        bottom(
            figure,
            [Line2D([], [], color="#0072B2", marker="o", linestyle=KINDS["measured"], linewidth=0, label="measured")],
        )
    return figure
