#!/usr/bin/env bash
# matplotlib 3.11.2: one dotted hatch makes an SVG 255,884 bytes longer, a crossed one 1,247.
#
# Expected: a hatch is a tile of a few lines or circles that the SVG repeats, so that "...." and "xxxx" cost about the
# same, a few kilobytes for each colour.
# Real: the tile of "...." holds every dot as eight cubic curves with six decimals, and the tile is written once for
# each colour of bars. In a chart of three hatched series the hatches are most of the file.
#
# Why trainers over slow links meet it: parts of a step (computed, exposed, projected) are told apart by hatches in
# charts that are embedded as SVG in a report, and a report of a sweep is sent over the link that it is about.
#
# Seen:
#   hatch 'xxxx', one colour: 1247 bytes more than without
#   hatch '....', one colour: 255884 bytes more, three colours: 767618
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "matplotlib==3.11.2" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PY'
import io

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt


def length(hatch: str, colours: list[str]) -> int:
    figure, axes = plt.subplots()
    for place, colour in enumerate(colours):
        axes.bar(place, 1, hatch=hatch, facecolor="white", edgecolor=colour)
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    plt.close(figure)
    return len(out.getvalue())


plain = length("", ["red"])
lines, dots = (length(hatch, ["red"]) - plain for hatch in ("xxxx", "...."))
three = length("....", ["red", "green", "blue"]) - length("", ["red", "green", "blue"])
print(f"hatch 'xxxx', one colour: {lines} bytes more than without")
print(f"hatch '....', one colour: {dots} bytes more, three colours: {three}")
assert dots > 20 * lines
assert three > 2.5 * dots
PY
