"""What the figures of a sweep share: the rows that they show where more is varied than their axes, and the caption."""

import pandas as pd

from testbed.analysis.sweep.results import Sweep

__all__ = ["HELD", "at_first", "doubts", "sweep_caption"]

_SUSPECT = ("suspect_steps", "suspect_syncs")
HELD = ("bandwidth_bps", "one_way_delay_seconds")
"""The two axes that figures have."""


def at_first(sweep: Sweep, *free: str) -> tuple[pd.DataFrame, str]:
    """Rows that are done and lie, in all that is varied but `free`, at the first value; and which that is, in words."""
    table = sweep.table[sweep.table["state"] == "done"]
    held = [key for key in sweep.record.varied if _column(key) not in free]
    words = []
    for key in held:
        values = list(dict.fromkeys(sweep.table[key].astype(str)))
        table = table[table[key].astype(str) == values[0]]
        if len(values) > 1:
            words.append(f"{key} {values[0]}, the first of {len(values)}")
    return table, "; ".join(words)


def doubts(sweep: Sweep) -> list[str]:
    """The same as sentences over all cells: suspect times, cells of another state, machines that differ."""
    cells = sweep.table[sweep.table["state"].isin(("done", "invalid"))].drop_duplicates(["cell", "arm", "point"])
    found = []
    if count := int((cells[list(_SUSPECT)].fillna(0) > 0).any(axis=1).sum()):
        found.append(
            f"{count} of {len(cells)} cells have suspect steps or synchronisations: the machine, or something on the "
            "link, may have prolonged them (marked suspect)."
        )
    if count := int((cells["older"].fillna("") != "").sum()):
        kinds = "; ".join(sorted({why for why in cells["older"] if why}))
        found.append(f"{count} of {len(cells)} cells are of another state and were kept: {kinds} (marked older).")
    if len(machines := sweep.record.machines) > 1:
        keys = ("host", "kernel", "cpu", "cpu_features")
        differ = [key for key in keys if len({getattr(each, key) for each in machines}) > 1]
        found.append(
            f"Cells come from {len(machines)} machines, or states of one, that differ in {', '.join(differ)}: "
            "times may differ for that alone."
        )
    return found


def _column(key: str) -> str:
    return {"bw": "bandwidth_bps", "delay": "one_way_delay_seconds"}.get(key, key)


def sweep_caption(sweep: Sweep, note: str, held: str = "", *, learned: bool = False) -> str:
    """`learned`: of losses, which have seeds; times and bytes do not depend on them and are measured once."""
    table = sweep.table[sweep.table["state"] == "done"]
    seeds = table["seed"].nunique()
    facts = []
    if len(table):
        first = table.iloc[0]
        facts = [
            f"{first['nodes']:.0f} of {first['nodes_of_target']:.0f} nodes of {first['target']} timed"
            + (f", {first['nodes_learned']:.0f} learned" if learned and first["nodes_learned"] else ""),
            f"accounting {first['accounting']}",
            f"preset {first['preset']}",
        ]
    states = ", ".join(f"{count} {state}" for state, count in sweep.record.states.items())
    facts += [f"{seeds} seeds (n = {seeds})"] * learned + [f"cells: {states}"]
    note = " ".join([note, *doubts(sweep)])
    return f"{' · '.join(facts)}. {held + '. ' if held else ''}{note}"
