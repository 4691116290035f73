"""The line under a figure: what was compared, on what, and which of its numbers are measured."""

from typing import Any

from testbed.analysis.formats import MISSING, rate, significant
from testbed.analysis.load import Comparison

__all__ = ["caption", "kinds_sentence", "layers_words", "link_words", "span"]


def caption(comparison: Comparison, *, times: bool = True) -> str:
    """The conditions, then, where a figure shows `times`, how they came about."""
    facts = comparison.comparison
    of = facts.get("nodes_of_target")
    nodes = f"{facts['nodes']} of {of} nodes" if of and of != facts["nodes"] else f"{facts['nodes']} nodes"
    target = facts.get("target") if comparison.paced else None
    parts = [
        link_words(facts),
        nodes,
        f"target {target}" if target else "no pace: this machine's own speed and sizes",
        f"preset {facts.get('preset')}",
        f"seed {facts.get('seed')} (n = 1)",
        f"{facts.get('congestion_control')}",
    ]
    return " · ".join(parts) + ". " + kinds_sentence(comparison, times=times)


def link_words(facts: dict[str, Any]) -> str:
    """The link under test: "300 Mbit/s between each pair of nodes (pair, layer2)"."""
    whose = {"pair": "between each pair of nodes", "nic": "for all of a node's traffic"}
    words = f"{rate(facts.get('bandwidth_bps'))} {whose.get(facts['accounting'], '')} ({facts['accounting']}, {facts.get('framing')})"
    delay = facts.get("delay_seconds")
    return words + (f", {significant(1000 * delay)} ms one way" if delay else "")


def kinds_sentence(comparison: Comparison, *, times: bool = True) -> str:
    """What is measured, modelled and composed, in words."""
    modelled = [arm["arm"] for arm in comparison.arms if arm.get("link") == "modelled"]
    measured = "Measured: loss of the small model" + (
        ", bytes, exchange and synchronisation" if comparison.paced else ", time, bytes"
    )
    sentences = [
        measured
        + (
            f", {span(comparison, 'steps_timed')} steps per arm ({layers_words(comparison)})."
            if times
            else "."
        )
    ]
    links = f"the link of {', '.join(modelled)}" if modelled else ""
    compute = "compute time (the target's)" if comparison.paced else ""
    if compute or links:
        sentences.append(f"Modelled: {' and '.join(part for part in (compute, links) if part)}.")
    if times and comparison.comparison.get("mode") == "composed":
        sentences.append("Composed: time over a whole run, by resampling measured steps.")
    return " ".join(sentences)


def span(comparison: Comparison, key: str) -> str:
    """Smallest and largest of a count over the arms: "3–5"."""
    values = [arm[key] for arm in comparison.arms if arm.get(key) is not None]
    if not values:
        return MISSING
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


def layers_words(comparison: Comparison) -> str:
    """How many of the target's layers the timed steps went through."""
    timed = [(arm.get("layers_timed"), arm.get("layers_of_target")) for arm in comparison.arms]
    known = {(some, all_) for some, all_ in timed if some and all_}
    if not known or all(some == all_ for some, all_ in known):
        return "all layers"
    return f"{span(comparison, 'layers_timed')} of {span(comparison, 'layers_of_target')} like layers"
