"""The summary at the end of a comparison: a table of the arms, then what it means in words."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.analysis.captions import link_words
from testbed.analysis.formats import MISSING, percent, rate, significant, trimmed, usable
from testbed.analysis.load import Comparison
from testbed.analysis.style import shown
from testbed.analysis.words import sentences

__all__ = ["print_summary", "summary_table"]

_COLUMNS = (
    "link\nbit/s\nasked",
    "\nmeas-\nured",
    "step\ns\n± 95 %",
    "timed\nsteps\n×lay.",
    "times\ncent-\nral.",
    "K, V\nMB per\nstep",
    "\n% of\nexact",
    "wire\nMB/\nstep",
    "val\nloss\n",
    "\nvs\nexact",
    "rem.\nre-\ncall",
    "reco-\nver-\ned",
    "va-\nlid\n",
)
"""After the arm's name; "exact" is the arm `decentralised`."""


def summary_table(comparison: Comparison) -> Table:
    """A row per arm, at most 100 columns wide."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("\n\narm", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for arm in comparison.arms:
        name = Text(shown(arm["arm"], 13), style="" if arm.get("valid") else "red")
        table.add_row(name, *(Text(cell) for cell in _cells(arm)))
    return table


def _cells(arm: dict[str, Any]) -> list[str]:
    modelled = arm.get("link") == "modelled"
    return [
        _bits(arm.get("rate_bps")) if arm.get("rate_bps") is not None else "none",
        "model*" if modelled else _bits(arm.get("rate_measured_bps")),
        _step(arm),
        _timed(arm),
        significant(arm.get("step_time_vs_centralised")),
        _mega(arm.get("kv_payload_bytes_per_step")),
        _per_cent(arm.get("kv_bytes_vs_decentralised")),
        _mega(arm.get("wire_bytes_per_step")),
        significant(arm.get("final_val_loss"), 4),
        percent(arm.get("val_loss_vs_decentralised"), signed=True).replace(" %", "%"),
        _short(arm.get("recall_accuracy_remote")),
        _short(arm.get("recovered_fraction")),
        "yes" if arm.get("valid") else "NO",
    ]


def _step(arm: dict[str, Any]) -> str:
    mean, half = arm.get("step_seconds_mean"), arm.get("step_seconds_ci95")
    if not usable(mean):
        return MISSING
    return f"{significant(mean)}±{significant(half, 1) if usable(half) else '?'}"


def _timed(arm: dict[str, Any]) -> str:
    steps, layers, of = (arm.get(key) for key in ("steps_timed", "layers_timed", "layers_of_target"))
    text = MISSING if steps is None else f"{steps}"
    return text if layers is None or of is None else f"{text}×{layers}/{of}"


def _bits(bps: float | None) -> str:
    return rate(bps, digits=4).removesuffix("bit/s").replace(" ", "")


def _short(value: float | None) -> str:
    return trimmed(value) if usable(value) else MISSING


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
