"""Names written at the ends of lines, so that no reader needs to match colours with a legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from testbed.analysis.plot.style import Look

__all__ = ["EndLabel", "place", "place_below"]

_GAP = 9.0  # pixels between a line's end and its name
_SHIFTS = (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5)  # heights of a name that it may be moved by
_END = 30  # how many points of a line its end, with its marker, weighs
_SAMPLE = 4.0  # pixels between two points of a line that names avoid


@dataclass(frozen=True, kw_only=True)
class EndLabel:
    """A name, and the point (in data units) that it belongs to."""

    text: str
    x: float
    y: float
    colour: str


def place(axes: Axes, labels: Sequence[EndLabel], lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write each label beside its point, where it hides no other label and as little of `lines` as can be.

    Call it last: limits, scales and margins must stand.
    """
    drawn = [_pixels(axes, *line) for line in lines]
    ends = [np.tile(line[-1], (_END, 1)) for line in drawn if len(line)]
    obstacles = np.concatenate([np.empty((0, 2)), *drawn, *ends])
    taken: list[Bbox] = []
    for label in sorted(labels, key=lambda one: one.y):
        point = axes.transData.transform((label.x, label.y))
        width, height = _extent(axes, label)
        candidates = [
            (
                _cost(box, taken, obstacles, axes.bbox) + 2 * abs(shift) + (3 if side < 0 else 0),
                index,
                side,
                shift,
                box,
            )
            for index, (side, shift) in enumerate((side, shift) for shift in _SHIFTS for side in (1, -1))
            for box in [_box(point, width, height, side, shift)]
        ]
        _, _, side, shift, box = min(candidates, key=lambda one: one[:2])
        taken.append(box)
        _write(axes, label, (side * _GAP, shift * height))


def place_below(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write the labels upright under points of about one height, in their order, each with a leader if it had to move.

    Call it last, as `place`; there must be room.
    """
    if not labels:
        return
    ordered = sorted(labels, key=lambda one: one.x)
    points = np.array([axes.transData.transform((label.x, label.y)) for label in ordered])
    pitch = _extent(axes, ordered[0])[1]
    at = points[:, 0].copy()
    for index in range(1, len(at)):
        at[index] = max(at[index], at[index - 1] + pitch)
    at -= max(0.0, float(np.mean(at - points[:, 0])))
    top, scale = points[:, 1].min() - 2 * _GAP, 72 / axes.figure.dpi
    for label, point, x in zip(ordered, points, at, strict=True):
        moved = abs(x - point[0]) > 2
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=((x - point[0]) * scale, (top - point[1]) * scale),
            textcoords="offset points",
            color=label.colour,
            fontsize=9,
            fontweight="bold",
            rotation=90,
            ha="center",
            va="top",
            annotation_clip=False,
            arrowprops={**_leader(label, from_left=True), "relpos": (0.5, 1.0)} if moved else None,
        )


def _extent(axes: Axes, label: EndLabel) -> tuple[float, float]:
    probe = axes.text(0, 0, label.text, fontsize=10)
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes to label belong to a figure"
    box = probe.get_window_extent(cast(FigureCanvasAgg, figure.canvas).get_renderer())
    probe.remove()
    return box.width, box.height + 2


def _box(point: np.ndarray, width: float, height: float, side: int, shift: float) -> Bbox:
    gap = _GAP * (2 if shift else 1)
    left = point[0] + gap if side > 0 else point[0] - gap - width
    return Bbox.from_bounds(left, point[1] + (shift - 0.5) * height, width, height)


def _cost(box: Bbox, taken: list[Bbox], obstacles: np.ndarray, inside: Bbox) -> float:
    hidden = np.all((obstacles > np.array(box.min) - 4) & (obstacles < np.array(box.max) + 4), axis=1).sum()
    outside = box.x1 > inside.x1 + 12 or box.x0 < inside.x0 or box.y0 < inside.y0 or box.y1 > inside.y1
    return 100.0 * sum(box.overlaps(other) for other in taken) + 2.0 * float(hidden) + 40.0 * outside


def _pixels(axes: Axes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points along a line, `_SAMPLE` pixels apart."""
    points = axes.transData.transform(np.column_stack([x, y]))
    points = points[np.all(np.isfinite(points), axis=1)]
    if len(points) < 2:
        return points.reshape(-1, 2)
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    at = np.arange(0.0, length[-1] + _SAMPLE, _SAMPLE)
    return np.column_stack([np.interp(at, length, points[:, 0]), np.interp(at, length, points[:, 1])])


def _write(axes: Axes, label: EndLabel, offset: tuple[float, float]) -> None:
    scale = 72 / axes.figure.dpi  # offsets are given in points
    moved = abs(offset[1]) > 1
    axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(offset[0] * scale * (2 if moved else 1), offset[1] * scale),
        textcoords="offset points",
        color=label.colour,
        fontsize=10,
        fontweight="bold",
        ha="left" if offset[0] > 0 else "right",
        va="center",
        annotation_clip=False,
        arrowprops={**_leader(label, from_left=offset[0] > 0)} if moved else None,
    )


def _leader(label: EndLabel, *, from_left: bool) -> Look:
    """A thin line from the name's near edge to its point."""
    edge = (0.0 if from_left else 1.0, 0.5)
    return {"arrowstyle": "-", "color": label.colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4, "relpos": edge}
