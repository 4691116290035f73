"""How every figure looks: colours of the arms, lines by what is measured, the caption.

Measured is solid, composed dashed, modelled dotted, and no line style means anything else. Colours are
those of Okabe and Ito (2008), told apart with any colour vision; each arm also has its own marker.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypedDict

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = [
    "GREY",
    "INK",
    "KINDS",
    "LineStyle",
    "Look",
    "bottom",
    "canvas",
    "colour",
    "hover",
    "kind_legend",
    "marker",
    "shown",
    "styled",
]

INK, GREY = "#222222", "#777777"

LineStyle = Literal["-", "none"] | tuple[float, Sequence[float]]


class Look(TypedDict, total=False):
    """What matplotlib is told of a line, a marker, a bar or an arrow."""

    color: str
    linestyle: LineStyle
    linewidth: float
    marker: str
    markersize: float
    markerfacecolor: str
    facecolor: str
    edgecolor: str
    hatch: str
    arrowstyle: str
    shrinkA: float
    shrinkB: float
    relpos: tuple[float, float]


KINDS: dict[str, LineStyle] = {"measured": "-", "composed": (0, (5, 2)), "modelled": (0, (1, 1.6))}
"""Line style of each kind of number."""

_ARMS = {
    "centralised": ("#000000", "o"),
    "decentralised": ("#D55E00", "s"),
    "subspace": ("#0072B2", "^"),
    "latent": ("#009E73", "D"),
    "control": ("#CC79A7", "v"),
}
_OTHERS = [("#E69F00", "P"), ("#56B4E9", "X"), ("#777777", "<"), ("#8A7A00", ">")]

_RC: dict[str, str | float] = {
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a user's "$" is a dollar
    "svg.hashsalt": "testbed",  # the same data give the same file
}
_WIDTH = 9.0  # inches; 900 pixels at 100 dots per inch
_CAPTION_COLUMNS, _CAPTION_LINE = 152, 0.155  # characters per line, inches per line


@contextmanager
def styled() -> Iterator[None]:
    """Our style while figures are made and written; nothing stays changed afterwards."""
    with matplotlib.rc_context(_RC):
        yield


def canvas(title: str, caption: str, *, height: float, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure with its title, its caption below `height` inches, and `columns` axes side by side."""
    lines = textwrap.wrap(caption, _CAPTION_COLUMNS)
    below = _CAPTION_LINE * len(lines) + 0.12
    figure = Figure(figsize=(_WIDTH, height + below), dpi=100)
    FigureCanvasAgg(figure)
    figure.text(
        0.012,
        0.08 / (height + below),
        "\n".join(lines),
        fontsize=8,
        color="#555555",
        va="bottom",
        linespacing=1.3,
    )
    figure.text(0.012, 1 - 0.12 / (height + below), title, fontsize=12, fontweight="bold", va="top")
    axes = figure.subplots(1, columns, squeeze=False, gridspec_kw=grid or None)
    margins = {"left": 0.075, "right": 0.985, "top": 1 - 0.45 / (height + below)}
    figure.subplots_adjust(**margins, bottom=(below + 0.85) / (height + below))
    return figure, list(axes[0])


def bottom(figure: Figure, handles: list[Any]) -> None:
    """A legend line just above the caption."""
    caption = figure.texts[0].get_text().count("\n") + 1
    above = (_CAPTION_LINE * caption + 0.14) / figure.get_figheight()
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.005, above), ncols=len(handles), handlelength=2.6
    )


def hover(artist: Artist, texts: Sequence[str]) -> None:
    """Say what an artist's markers are, one text each; or, with one text, the artist as a whole."""
    artist.hover_texts = list(texts)  # type: ignore[attr-defined]


def colour(arm: str, arms: list[str]) -> str:
    """The arm's colour: fixed for the standard arms, by position among the others."""
    return _look(arm, arms)[0]


def marker(arm: str, arms: list[str]) -> str:
    """The arm's marker."""
    return _look(arm, arms)[1]


def _look(arm: str, arms: list[str]) -> tuple[str, str]:
    if arm in _ARMS:
        return _ARMS[arm]
    others = [name for name in arms if name not in _ARMS]
    return _OTHERS[others.index(arm) % len(_OTHERS)]


def shown(name: str, width: int = 22) -> str:
    """A name of the user's, on one line and cut where it would not fit."""
    return (
        textwrap.shorten(name, width, placeholder="…")
        if " " in name
        else name
        if len(name) <= width
        else name[: width - 1] + "…"
    )


def kind_legend(kinds: list[str], words: dict[str, str]) -> list[Line2D]:
    """A legend entry for each of the kinds of line that a figure holds."""
    return [
        Line2D([], [], color=INK, linestyle=style, label=words.get(kind, kind))
        for kind, style in KINDS.items()
        if kind in kinds
    ]
