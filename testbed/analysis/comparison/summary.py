"""The summary at the end of a comparison: two tables of the arms, then what it means in words."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.analysis.comparison.captions import link_words
from testbed.analysis.comparison.findings import sentences
from testbed.analysis.comparison.load import Comparison
from testbed.analysis.plot.style import shown
from testbed.formats import MISSING, megabytes, nats_above, percent, rate, significant, trimmed, usable
from testbed.records import ArmRecord, Conditions, Ledger

__all__ = ["print_summary", "summary_tables"]

_COSTS = ("asked", "found", "step ± 95 %", "timed", "× centr.", "K,V MB", "of exact", "wire MB")
_LEDGER = ("payload", "resent", "predicted", "shaper", "interface", "largest gap", "drops", "suspect")
_QUALITY = ("val loss", "nats above exact", "remote recall", "recovered", "valid")


def summary_tables(comparison: Comparison) -> list[Table]:
    """A row per arm: what a step costs, and what is learned. At most 90 columns wide."""
    costs = _table("link, time and bytes of a step", _COSTS)
    quality = _table(f"quality after {_steps(comparison)} steps", _QUALITY)
    for arm in comparison.arms:
        name = Text(shown(arm.arm, 13), style="" if arm.valid else "red")
        costs.add_row(name, *(Text(cell) for cell in _costs(arm)))
        quality.add_row(name, *(Text(cell) for cell in _quality(arm)))
    ledger = _table("ledger: MB of all nodes and timed steps, from what was handed over to what left", _LEDGER)
    for arm in comparison.arms:
        if arm.ledger and arm.link == "shaped":
            ledger.add_row(Text(shown(arm.arm, 13)), *(Text(cell) for cell in _ledger(arm, arm.ledger)))
    return [costs, quality, *([ledger] if ledger.row_count else [])]


def _ledger(arm: ArmRecord, ledger: Ledger) -> list[str]:
    """A row of the ledger, in megabytes."""
    suspect = arm.suspect_steps + arm.suspect_syncs
    return [
        megabytes(ledger.payload_bytes),
        megabytes(ledger.socket_resent_bytes),
        megabytes(ledger.predicted_wire_bytes),
        megabytes(ledger.wire_tx_bytes),
        megabytes(ledger.interface_tx_bytes),
        f"{ledger.largest_difference:.3%}",
        f"{ledger.queue_drops}",
        f"{suspect}" if suspect else "-",
    ]


def _legend(facts: Conditions) -> str:
    of = facts.nodes_of_target or facts.nodes
    peers = f"{facts.nodes - 1}" + (f" of its {of - 1}" if of != facts.nodes else "")
    return (
        f"found: from measured goodput; step: seconds; timed: steps × of the target's layers; exact: decentralised; "
        f"MB: from a node to {peers} peers per step, synchronisation apart"
    )


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False
    )
    table.add_column("arm", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _steps(comparison: Comparison) -> str:
    counts = sorted({arm.steps for arm in comparison.arms})
    return MISSING if not counts else "–".join(f"{count}" for count in dict.fromkeys((counts[0], counts[-1])))


def _costs(arm: ArmRecord) -> list[str]:
    modelled = arm.link == "modelled"
    return [
        _bits(arm.rate_bps) if arm.rate_bps is not None else "none",
        "model" if modelled else _bits(arm.rate_measured_bps),
        _step(arm),
        _timed(arm),
        significant(arm.step_time_vs_centralised),
        megabytes(arm.kv_payload_bytes_per_step),
        percent(arm.kv_bytes_vs_decentralised),
        megabytes(arm.wire_bytes_per_step),
    ]


def _quality(arm: ArmRecord) -> list[str]:
    return [
        significant(arm.final_val_loss, 4),
        nats_above(arm.val_loss_above_decentralised),
        _short(arm.recall_accuracy_remote),
        _short(arm.recovered_fraction),
        "yes" if arm.valid else "NO",
    ]


def _step(arm: ArmRecord) -> str:
    mean, half = arm.step_seconds_mean, arm.step_seconds_ci95
    if not usable(mean):
        return MISSING
    return f"{significant(mean)}±{significant(half, 1) if usable(half) else '?'}"


def _timed(arm: ArmRecord) -> str:
    layers, of = arm.layers_timed, arm.layers_of_target
    return f"{arm.steps_timed}" if layers is None or of is None else f"{arm.steps_timed}×{layers}/{of}"


def _bits(bps: float | None) -> str:
    return rate(bps, digits=4).removesuffix("bit/s").replace(" ", "")


def _short(value: float | None) -> str:
    return trimmed(value) if usable(value) else MISSING


def print_summary(comparison: Comparison, console: Console) -> None:
    """The table, its legend, then sentences: what was won and paid, and what is measured."""
    facts = comparison.record
    console.print(Text(f"{facts.name}: {link_words(facts)}"), style="bold")
    for table in summary_tables(comparison):
        console.print()
        console.print(table)
    console.print(f"{_legend(facts)}\n", style="dim")
    for sentence, style in sentences(comparison):
        console.print(Text(f"• {sentence}"), style=style)
    for arm in comparison.arms:
        if arm.caution:
            console.print(Text(f"• {arm.arm}: {arm.caution}"), style="yellow")
