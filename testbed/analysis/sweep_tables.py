"""What the figures of a sweep share: the rows that they show where more is varied than their axes, and the caption."""

import pandas as pd

from testbed.analysis.sweeps import Sweep

__all__ = ["HELD", "at_first", "sweep_caption"]

HELD = ("bandwidth_bps", "one_way_delay_seconds")
"""The two axes that figures have."""


def at_first(sweep: Sweep, *free: str) -> tuple[pd.DataFrame, str]:
    """Rows that are done and lie, in all that is varied but `free`, at the first value; and which that is, in words."""
    table = sweep.table[sweep.table["state"] == "done"]
    held = [key for key in sweep.record["varied"] if _column(key) not in free]
    words = []
    for key in held:
        values = list(dict.fromkeys(sweep.table[key].astype(str)))
        table = table[table[key].astype(str) == values[0]]
        if len(values) > 1:
            words.append(f"{key} {values[0]}, the first of {len(values)}")
    return table, "; ".join(words)


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
    states = ", ".join(f"{count} {state}" for state, count in sweep.record["states"].items())
    facts += [f"{seeds} seeds (n = {seeds})"] * learned + [f"cells: {states}"]
    return f"{' · '.join(facts)}. {held + '. ' if held else ''}{note}"
