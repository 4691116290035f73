"""The line under a figure: what was compared, on what, and which of its numbers are measured."""

from testbed.analysis.comparison.load import Comparison
from testbed.formats import MISSING, counted, rate, significant, trimmed
from testbed.records import ComparisonRecord

__all__ = ["caption", "kinds_sentence", "layers_words", "link_words", "modelled_links", "span"]


def caption(comparison: Comparison, note: str) -> str:
    """The conditions, then a note on what is shown."""
    facts = comparison.record
    of = facts.nodes_of_target
    nodes = f"{facts.nodes} of {of} nodes" if of and of != facts.nodes else f"{facts.nodes} nodes"
    target = facts.target if comparison.record.paced else None
    parts = [
        link_words(facts),
        nodes,
        f"target {target}" if target else "no pace: this machine's own speed and sizes",
        f"preset {facts.preset}",
        f"seed {facts.seed} (n = 1)",
        f"{facts.congestion_control}",
        *_disturbed(comparison),
    ]
    return f"{' · '.join(parts)}. {note}"


def _disturbed(comparison: Comparison) -> list[str]:
    """Arms that are not valid, by name; what is suspect, of all together: which, and why, says the report."""
    invalid = [arm.arm for arm in comparison.arms if not arm.valid]
    found = [f"not valid: {', '.join(invalid)}"] if invalid else []
    for count, what in (
        (sum(arm.suspect_steps for arm in comparison.arms), "step"),
        (sum(arm.suspect_syncs for arm in comparison.arms), "synchronisation"),
    ):
        if count:
            found.append(counted(count, what) + " suspect")
    return found


def link_words(facts: ComparisonRecord) -> str:
    """The link under test: "300 Mbit/s between each pair of nodes (pair, layer2)"."""
    whose = {"pair": "between each pair of nodes", "nic": "for all of a node's traffic"}[facts.accounting]
    counted = f"({facts.accounting}, {facts.framing})"
    delay = facts.delay_seconds
    late = f", {significant(1000 * delay)} ms one way" if delay else ""
    kinds = {arm.link for arm in facts.arms if arm.arm != "centralised"}
    real = "" if "shaped" in kinds or not kinds else f", {' and '.join(sorted(kinds))}, not shaped"
    return f"{rate(facts.bandwidth_bps)} {whose} {counted}{late}{real}"


def kinds_sentence(comparison: Comparison) -> str:
    """What is measured, modelled and composed, in words."""
    count = span(comparison, "steps_timed")
    timed = "no steps" if count == MISSING else f"{count} steps per arm{layers_words(comparison)}"
    if comparison.record.paced:
        carried = any(arm.link != "modelled" for arm in comparison.arms)
        wire = f"bytes, exchange and synchronisation{_sync_words(comparison)}, {timed}"
        measured = f"loss of the small model, {wire}" if carried else "loss of the small model"
    else:
        measured = f"loss, bytes and all times, {timed}"
    sentences = [f"Measured: {measured}."]
    modelled = ["compute time (the target's)"] if comparison.record.paced else []
    if links := modelled_links(comparison):
        modelled.append(links)
    if modelled:
        sentences.append(f"Modelled: {' and '.join(modelled)}.")
    if comparison.record.mode == "composed":
        sentences.append("Composed: time over a whole run, by resampling measured steps.")
    return " ".join(sentences)


def modelled_links(comparison: Comparison) -> str:
    """The arms whose link was waited for, not carried: "the link of centralised", or nothing."""
    arms = [arm.arm for arm in comparison.arms if arm.link == "modelled"]
    return f"the link of {', '.join(arms)}" if arms else ""


def span(comparison: Comparison, key: str) -> str:
    """Smallest and largest of a number over the arms: "3–5"."""
    values = [value for arm in comparison.arms if (value := getattr(arm, key)) is not None]
    if not values:
        return MISSING
    low, high = trimmed(min(values)), trimmed(max(values))
    return f"{low}".removesuffix(".000") if low == high else f"{low.removesuffix('.000')}–{high.removesuffix('.000')}"


def layers_words(comparison: Comparison) -> str:
    """Where steps were timed on some of the target's like layers: on how many."""
    pairs = [(arm.layers_timed, arm.layers_of_target) for arm in comparison.arms]
    if all(some == every for some, every in pairs if some and every):
        return ""
    timed, every = span(comparison, "layers_timed"), span(comparison, "layers_of_target")
    return f" (on {timed} of {every} like layers, scaled to all)"


def _sync_words(comparison: Comparison) -> str:
    fractions = [arm.sync_fraction_timed for arm in comparison.arms]
    if all(fraction is None or fraction >= 1 for fraction in fractions):
        return ""
    return f" (at {span(comparison, 'sync_fraction_timed')} of its size, scaled)"
