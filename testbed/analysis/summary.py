"""The summary at the end of a comparison: a table of the arms, then what it means in words."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.analysis.captions import link_words
from testbed.analysis.formats import MISSING, percent, rate, significant, usable
from testbed.analysis.load import Comparison
from testbed.analysis.style import shown
from testbed.analysis.words import sentences

__all__ = ["print_summary", "summary_table"]

_COLUMNS = (
    "link\nasked\nbit/s",
    "\nmeas-\nured",
    "step, s\n± 95 %\n",
    "steps ×\nlayers\ntimed",
    "× cen-\ntral-\nised",
    "K,V sent\nMB per\nstep",
    "% of\nexact\n",
    "wire\nMB per\nstep",
    "val\nloss\n",
    "against\nexact\n",
    "re-\ncall\n",
    "reco-\nvered\n",
)
"""After the arm's name; "exact" is the arm `decentralised`."""


def summary_table(comparison: Comparison) -> Table:
    """A row per arm, at most 100 columns wide."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("arm", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for arm in comparison.arms:
        name = Text(shown(arm["arm"], 14), style="" if arm.get("valid") else "red")
        table.add_row(name, *(Text(cell) for cell in _cells(arm)))
    return table


def _cells(arm: dict[str, Any]) -> list[str]:
    modelled = arm.get("link") == "modelled"
    mark = "*" if modelled else ""
    return [
        _bits(arm.get("rate_bps")) if arm.get("rate_bps") is not None else "none",
        "model*" if modelled else _bits(arm.get("rate_measured_bps")),
        f"{_step(arm)}{mark}",
        _timed(arm),
        significant(arm.get("step_time_vs_centralised")),
        f"{_mega(arm.get('kv_payload_bytes_per_step'))}{mark}",
        _per_cent(arm.get("kv_bytes_vs_decentralised")),
        _mega(arm.get("wire_bytes_per_step")),
        significant(arm.get("final_val_loss"), 4),
        percent(arm.get("val_loss_vs_decentralised"), signed=True).replace(" %", "%"),
        significant(arm.get("recall_accuracy_remote"), 2),
        significant(arm.get("recovered_fraction"), 2),
    ]


def _step(arm: dict[str, Any]) -> str:
    mean, half = arm.get("step_seconds_mean"), arm.get("step_seconds_ci95")
    if not usable(mean):
        return MISSING
    return f"{significant(mean)}±{significant(half, 2) if usable(half) else '?'}"


def _timed(arm: dict[str, Any]) -> str:
    steps, layers, of = (arm.get(key) for key in ("steps_timed", "layers_timed", "layers_of_target"))
    text = MISSING if steps is None else f"{steps}"
    return text if layers is None or of is None else f"{text}×{layers}/{of}"


def _bits(bps: float | None) -> str:
    return rate(bps, digits=4).removesuffix("bit/s").replace(" ", "")


def _mega(count: float | None) -> str:
    return significant(None if count is None else count / 1e6)


def _per_cent(fraction: float | None) -> str:
    return significant(None if fraction is None else 100 * fraction)


def print_summary(comparison: Comparison, console: Console) -> None:
    """The table, its legend, then sentences: what was won and paid, and what is measured."""
    facts = comparison.comparison
    console.print(Text(f"{facts['name']}: {link_words(facts)}"), style="bold")
    console.print(summary_table(comparison))
    console.print()
    for sentence, style in sentences(comparison):
        console.print(Text(f"• {sentence}"), style=style)
