"""A comparison in sentences, each true by the numbers beside it and left out where a number is missing."""

from collections.abc import Iterator
from typing import Any

from testbed.analysis.captions import kinds_sentence
from testbed.analysis.formats import counted, duration, nats_above, percent, rate, significant, usable
from testbed.analysis.load import Comparison

__all__ = ["sentences"]

Record = dict[str, Any]


def sentences(comparison: Comparison) -> list[tuple[str, str]]:
    """Sentences with the style each is printed in, most important first."""
    facts, arms = comparison.comparison, {arm["arm"]: arm for arm in comparison.arms}
    found = [(facts["void"], "bold red")] if facts.get("void") else []
    found += [(text, "red") for text in _invalid(comparison.arms)]
    found += [(text, "yellow") for text in _suspect(comparison.arms)]
    changed = any(arm.get("events") for arm in comparison.arms)
    if changed:
        found.append(("Links changed while arms trained (events.json); what was found of them is from before.", ""))
    found += [(text, "") for text in _codecs(comparison.arms, arms)]
    found += [(text, "") for text in (*_sparse_sync(facts, arms), *_hours(comparison))]
    found += [(text, "") for text in _closed_forms(comparison) if not changed]
    return [*found, (_evidence(comparison), "dim")]


def _invalid(arms: list[Record]) -> Iterator[str]:
    for arm in arms:
        if not arm.get("valid"):
            yield f"{arm['arm']} is not valid: {'; '.join(arm.get('why') or ['no reason was noted'])}."


def _suspect(arms: list[Record]) -> Iterator[str]:
    """Times that something may have prolonged, which count all the same."""
    for arm in arms:
        steps, syncs = arm.get("suspect_steps") or 0, arm.get("suspect_syncs") or 0
        if steps or syncs:
            what = [counted(steps, "step")] * bool(steps) + [counted(syncs, "synchronisation")] * bool(syncs)
            yield f"{arm['arm']}: {' and '.join(what)} suspect: {arm.get('suspect_why') or 'no reason was noted'}."


def _codecs(arms: list[Record], by_name: dict[str, Record]) -> Iterator[str]:
    """What each codec won and what it cost, against the exact exchange on the same link."""
    exact = by_name.get("decentralised", {})
    for arm in arms:
        if arm["arm"] in ("centralised", "decentralised") or arm.get("exchange") == "local":
            continue
        parts = [*_won(arm, exact), *_paid(arm)]
        if parts:
            yield f"{arm['arm']}, against exact exchange on the same link: {', '.join(parts)}."
    control = by_name.get("control", {})
    worse = control.get("val_loss_above_decentralised")
    if usable(worse):
        recall = control.get("recall_accuracy_remote")
        answers = f" and {percent(recall)} of the remote recall right" if usable(recall) else ""
        yield f"No exchange at all (control): validation loss {nats_above(worse)} nats{answers}."


def _won(arm: Record, exact: Record) -> Iterator[str]:
    share, mine, theirs = arm.get("kv_bytes_vs_decentralised"), _step(arm), _step(exact)
    if usable(share):
        yield f"{percent(share)} of the K and V bytes"
    if mine and theirs:
        faster = theirs / mine
        doubt = "" if arm.get("valid") and exact.get("valid") else " (not valid)"
        words = f"{significant(faster)} × as fast" if faster >= 1 else f"{significant(1 / faster)} × as long"
        yield f"steps {words}{doubt}"


def _paid(arm: Record) -> Iterator[str]:
    loss, recovered = arm.get("val_loss_above_decentralised"), arm.get("recovered_fraction")
    if usable(loss):
        yield f"validation loss {nats_above(loss)} nats"
    if usable(recovered):
        yield f"{percent(recovered)} recovered of what exchange gives on remote tokens"


def _step(arm: Record) -> float | None:
    """Seconds of a step, its share of synchronisation included."""
    mean, sync = arm.get("step_seconds_mean"), arm.get("sync_seconds_per_step")
    return mean + (sync if usable(sync) else 0.0) if usable(mean) and mean > 0 else None


def _sparse_sync(facts: Record, by_name: dict[str, Record]) -> Iterator[str]:
    cost = by_name.get("decentralised", {}).get("val_loss_above_centralised")
    if usable(cost):
        yield (
            f"Sparse synchronisation alone (decentralised against centralised, weights averaged every "
            f"{facts['sync_every']} steps): validation loss {nats_above(cost)} nats."
        )


def _hours(comparison: Comparison) -> Iterator[str]:
    ends = comparison.table.dropna(subset=["time_seconds"]).groupby("arm")["time_seconds"].max()
    whole = [
        f"{arm['arm']} {duration(float(ends[arm['arm']]) + comparison.warm_seconds)}"
        for arm in comparison.arms
        if arm["arm"] in ends.index and ends[arm["arm"]] > 0
    ]
    if whole:
        kind = comparison.comparison.get("warm_start_kind") or "modelled"
        warm = f", {duration(comparison.warm_seconds)} of {kind} warm start included" if comparison.warm_seconds else ""
        yield f"A whole run takes: {', '.join(whole)}{warm}."


def _closed_forms(comparison: Comparison) -> Iterator[str]:
    facts, apart, other = comparison.comparison, [], []
    for arm in comparison.arms:
        mean, closed, elsewhere = (
            arm.get(key) for key in ("step_seconds_mean", "closed_form_step_seconds", "other_accounting_step_seconds")
        )
        silent = not arm.get("wire_bytes_per_step") and arm.get("compute_kind") == "measured"  # nothing to compare
        if usable(mean) and usable(closed) and closed > 0 and arm.get("link") != "modelled" and not silent:
            apart.append(abs(mean / closed - 1))
        if usable(elsewhere) and arm.get("link") != "modelled":
            other.append(f"{arm['arm']} {significant(elsewhere)} s")
    if apart:
        yield f"Step times lie within {percent(max(apart))} of compute + bytes / measured goodput."
    if other:
        names = {"pair": "all of a node's traffic together (nic)", "nic": "each pair of nodes (pair)"}
        whose = names.get(facts["accounting"], "the other accounting")
        yield (
            f"Were {rate(facts.get('bandwidth_bps'))} the rate of {whose}, "
            f"a step would take, by closed form: {', '.join(other)}."
        )


def _evidence(comparison: Comparison) -> str:
    return kinds_sentence(comparison)
