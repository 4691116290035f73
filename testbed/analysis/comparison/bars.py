"""Figures of what a step costs: its time by part, its bytes by kind; and of how true the links were."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from testbed.analysis.comparison.arm_names import shown_arms
from testbed.analysis.comparison.captions import caption, kinds_sentence, modelled_links
from testbed.analysis.comparison.load import Comparison
from testbed.analysis.plot.style import GREY, INK, KINDS, Look, bottom, canvas, hover, styled
from testbed.formats import MISSING, significant, size, usable

__all__ = ["data_bytes", "data_step_time", "figure_bytes", "figure_step_time"]

_PARTS = {"compute": "#C9C9C9", "exchange": "#0072B2", "sync": "#E69F00", "other": "#F0E442"}
_BYTES = {"kv": ("#0072B2", "o"), "other": ("#E69F00", "s"), "wire": ("#000000", "D")}
_ZOOM_FROM = 5  # a second, enlarged panel when steps differ by more than this


def data_step_time(comparison: Comparison) -> pd.DataFrame:
    """What `figure_step_time` shows, seconds per step: a row per arm and part, with its kind."""
    rows = []
    for arm in comparison.arms:
        parts = {
            "compute": arm.compute_seconds_median,
            "exchange": arm.exchange_seconds_median,
            "sync": arm.sync_seconds_per_step,
        }
        mean = arm.step_seconds_mean
        if usable(mean):
            parts["other"] = max(0.0, mean - arm.compute_seconds_median - arm.exchange_seconds_median)
        link = "modelled" if arm.link == "modelled" else "measured"
        kinds = {"compute": "modelled" if comparison.record.paced else "measured"}
        for part, seconds in parts.items():
            rows.append({"arm": arm.arm, "part": part, "seconds": seconds, "kind": kinds.get(part, link)})
    table = pd.DataFrame(rows, columns=["arm", "part", "seconds", "kind"])
    return table.assign(seconds=table["seconds"].astype(float))


def figure_step_time(comparison: Comparison) -> Figure:
    """Where the time of a step goes: hatched compute is modelled, dotted outlines a modelled link."""
    table = data_step_time(comparison)
    totals = table.groupby("arm", sort=False)["seconds"].sum(min_count=1)
    known = totals[totals > 0]
    zoom = len(known) > 1 and known.max() > _ZOOM_FROM * known.min()
    with styled():
        figure, axes = canvas(
            "Time of a step",
            caption(comparison, kinds_sentence(comparison)),
            height=1.5 + 0.5 * len(totals),
            columns=2 if zoom else 1,
            wspace=0.06,
        )
        for one in axes:
            _stack(one, table)
            one.set_xlabel("seconds per step")
        axes[0].set_xlim(0, (known.max() if len(known) else 1.0) * 1.2)
        _totals(axes[0], totals)
        if zoom:
            near = known[known <= known.min() * _ZOOM_FROM].max() * 1.35
            axes[1].set_xlim(0, near)
            axes[1].set_xlabel("seconds per step, enlarged")
            _totals(axes[1], totals)
        _arm_axis(figure, axes, [shown_arms(comparison)[name] for name in totals.index])
        bottom(figure, _part_legend(table))
    return figure


def _stack(axes: Axes, table: pd.DataFrame) -> None:
    for row, (_, parts) in enumerate(table.groupby("arm", sort=False)):
        left = 0.0
        for part in parts.to_dict("records"):
            if not usable(part["seconds"]) or part["seconds"] <= 0:
                continue
            (bar,) = axes.barh(row, part["seconds"], left=left, height=0.62, **_fill(part["part"], part["kind"]))
            hover(bar, [f"{part['arm']}, {part['part']}: {significant(part['seconds'])} s, {part['kind']}"])
            left += part["seconds"]


def _fill(part: str, kind: str) -> Look:
    """Solid where measured; hatched in a light tone, with a dotted outline, where modelled."""
    tone = _PARTS[part]
    if kind == "measured":
        return {"facecolor": tone, "edgecolor": INK, "linewidth": 0.6}
    hatch, edge = ("////", "#8A8A8A") if part == "compute" else (r"\\\\", tone)  # dots are 256 kB of SVG each
    return {
        "facecolor": "white",
        "edgecolor": edge,
        "hatch": hatch,
        "linestyle": KINDS["modelled"],
        "linewidth": 1.1,
    }


def _totals(axes: Axes, totals: pd.Series) -> None:
    """Each bar's length in seconds at its end, or, where it leaves the panel, at the panel's edge."""
    right = axes.get_xlim()[1]
    for row, total in enumerate(totals):
        text, cut = (
            f"{significant(total)} s" if usable(total) else "not timed",
            usable(total) and total > right,
        )
        spot = right if cut else total if usable(total) else 0.0
        axes.annotate(
            f"{text} ▸" if cut else text,
            (spot, row),
            xytext=(-6 if cut else 5, 0),
            textcoords="offset points",
            ha="right" if cut else "left",
            va="center",
            fontsize=9.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2} if cut else None,
        )


def _arm_axis(figure: Figure, axes: list[Axes], names: list[str]) -> None:
    for one in axes:
        one.set_ylim(len(names) - 0.45, -0.55)
        one.grid(axis="y", visible=False)
        one.set_yticks(range(len(names)), [""] * len(names))
        one.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), names)
    longest = max(map(len, names), default=0)
    figure.subplots_adjust(left=0.035 + 0.0092 * longest)


def _part_legend(table: pd.DataFrame) -> list[Patch]:
    words = {
        "compute": "compute",
        "exchange": "exchange",
        "sync": "synchronisation, spread over steps",
        "other": "other",
    }
    handles = []
    for part, word in words.items():
        rows = table[(table["part"] == part) & (table["seconds"] > 0)]
        if part == "other" and rows["seconds"].sum() < 0.002 * table["seconds"].sum():
            continue
        if len(rows):
            kind = min(rows["kind"])  # measured, wherever some arm's is
            handles.append(
                Patch(
                    label=f"{word}, modelled" if part == "compute" and kind == "modelled" else word,
                    **_fill(part, kind),
                )
            )
    if "modelled" in set(table["kind"][table["part"] != "compute"]):
        handles.append(Patch(label="over a modelled link", **(_fill("exchange", "modelled") | {"edgecolor": GREY})))
    return handles


def _bytes_note(comparison: Comparison) -> str:
    filled = ", ballast up to the target's sizes included" if comparison.record.paced else ""
    links = modelled_links(comparison)
    modelled = f" Modelled: {links}." if links else ""
    return (
        f"Measured: payload as handed to the sockets{filled}; on the wire as counted by the queues; "
        f"synchronisation spread over the steps.{modelled}"
    )


def data_bytes(comparison: Comparison) -> pd.DataFrame:
    """What `figure_bytes` shows, bytes a node sends per step: a row per arm and what (kv, other, wire).

    Averaging the weights counts as other payload, spread over the steps between two averagings.
    """
    rows = []
    every = comparison.record.sync_every
    for arm in comparison.arms:
        kv, payload = arm.kv_payload_bytes_per_step, arm.payload_bytes_per_step
        other = payload - kv + (arm.sync_payload_bytes_each or 0) / every if usable(kv) and usable(payload) else None
        wire = arm.wire_bytes_per_step
        if usable(wire):
            wire += (arm.sync_wire_bytes_each or 0) / every
        kind = "modelled" if arm.link == "modelled" else "measured"
        for what, count in (("kv", kv), ("other", other), ("wire", wire)):
            rows.append({"arm": arm.arm, "what": what, "bytes": count, "kind": kind})
    table = pd.DataFrame(rows, columns=["arm", "what", "bytes", "kind"])
    return table.assign(bytes=table["bytes"].astype(float))


def figure_bytes(comparison: Comparison) -> Figure:
    """Bytes that a node sends per step: payload of K and V, other payload, and all that crossed the wire."""
    table = data_bytes(comparison)
    names = list(dict.fromkeys(table["arm"]))
    positive = table["bytes"][table["bytes"] > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1.0, 1.0)
    with styled():
        figure, axes = canvas(
            "Bytes sent per step",
            caption(comparison, _bytes_note(comparison)),
            height=1.6 + 0.62 * len(names),
        )
        axes[0].set_xscale("log")
        floor = 10 ** np.floor(np.log10(low) - 0.3)
        axes[0].set_xlim(floor, high * (high / floor) ** 0.16)
        for row, name in enumerate(names):
            for shift, part in zip((-0.25, 0.0, 0.25), table[table["arm"] == name].to_dict("records"), strict=True):
                _lollipop(axes[0], row + shift, floor, part)
            if row:
                axes[0].axhline(row - 0.5, color="#E4E4E4", linewidth=0.7)
        axes[0].xaxis.set_major_formatter(lambda value, _: size(value))
        axes[0].xaxis.set_minor_formatter(lambda *_: "")
        axes[0].set_xlabel("bytes that a node sends per step (logarithmic), mean over nodes")
        _arm_axis(figure, axes, [shown_arms(comparison)[name] for name in names])
        bottom(figure, _byte_legend(table))
    return figure


def _lollipop(axes: Axes, y: float, floor: float, part: dict[Hashable, Any]) -> None:
    tone, shape = _BYTES[part["what"]]
    some = usable(part["bytes"]) and part["bytes"] > 0
    if some:
        style = KINDS[part["kind"]]
        axes.plot([floor, part["bytes"]], [y, y], color=tone, linewidth=1.3, linestyle=style, alpha=0.75)
        face = tone if part["kind"] == "measured" else "white"
        axes.plot(part["bytes"], y, shape, markerfacecolor=face, markeredgecolor=tone, markersize=6)
    nothing = "none" if usable(part["bytes"]) else "not counted" if part["what"] == "wire" else MISSING
    axes.annotate(
        size(part["bytes"]) if some else nothing,
        (part["bytes"] if some else floor, y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        color=INK if some else GREY,
    )


def _byte_legend(table: pd.DataFrame) -> list[Line2D]:
    words = {
        "kv": "K, V and their gradients",
        "other": "weights and other payload",
        "wire": "on the wire, headers and all",
    }
    handles = [
        Line2D([], [], color=tone, marker=shape, linewidth=1.3, label=words[what])
        for what, (tone, shape) in _BYTES.items()
    ]
    if "modelled" in set(table["kind"]):
        look = {"markerfacecolor": "white", "linestyle": KINDS["modelled"]}
        handles.append(Line2D([], [], color=GREY, marker="o", label="modelled", **look))
    return handles
