"""A figure as part of a page: inline SVG whose points say what they are, in colours that follow the page's.

Whatever a user named stays text: matplotlib draws it, ElementTree escapes it.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

from matplotlib.figure import Figure

from testbed.analysis.plot.style import styled

__all__ = ["inline_svg"]

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_LONG = re.compile(r"-?\d+\.\d{3,}")
_COLOURS = {
    "#222222": "var(--ink)",
    "#000000": "var(--ink)",
    "#555555": "var(--soft)",
    "#777777": "var(--soft)",
    "#8a8a8a": "var(--soft)",
    "#ffffff": "var(--paper)",
    "#e4e4e4": "var(--grid)",
    "#ededed": "var(--band)",
    "#f3f3f3": "var(--band)",
    "#ddeedd": "var(--good)",
    "#0072b2": "var(--blue)",
}
"""Greys of the style, by what they are for; of the hues, the one that is too dark on black."""


def inline_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` element; `name` makes its ids unique on the page."""
    spoken = list(figure.findobj(lambda each: hasattr(each, "hover_texts")))
    for number, artist in enumerate(spoken):
        artist.set_gid(f"hover{number}")
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    by_id = {element.get("id"): element for element in root.iter()}
    for number, artist in enumerate(spoken):
        _say(by_id[f"hover{number}"], artist.hover_texts)  # type: ignore[attr-defined]
    for element in root.iter():
        _rename(element, name)
        if "d" in element.attrib:  # a hundredth of a point is more than anybody sees
            element.set("d", _LONG.sub(lambda number: f"{float(number[0]):.2f}", element.attrib["d"]))
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", title)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub("|".join(_COLOURS), lambda match: _COLOURS[match[0].lower()], text, flags=re.IGNORECASE)


def _say(element: ElementTree.Element, texts: list[str]) -> None:
    """A title for each marker, or for the whole."""
    markers = list(element.iter(f"{{{_SVG}}}use"))
    places = markers if len(markers) == len(texts) else [element]
    for place, text in zip(places, texts, strict=False):
        title: Any = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = text
        place.insert(0, title)
        place.set("class", "says")


def _rename(element: ElementTree.Element, name: str) -> None:
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif value.startswith("#") and key.endswith("href"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
