"""A comparison in sentences, each true by the numbers beside it and left out where a number is missing."""

from collections.abc import Iterator, Sequence

from testbed.analysis.comparison.captions import kinds_sentence
from testbed.analysis.comparison.load import Comparison
from testbed.formats import counted, duration, nats_above, percent, rate, significant, usable
from testbed.records import ArmRecord, Conditions

__all__ = ["sentences"]


def sentences(comparison: Comparison) -> list[tuple[str, str]]:
    """Sentences with the style each is printed in, most important first."""
    facts, arms = comparison.record, {arm.arm: arm for arm in comparison.arms}
    found = [(facts.void, "bold red")] if facts.void else []
    found += [(text, "red") for text in _invalid(comparison.arms)]
    found += [(text, "yellow") for text in _suspect(comparison.arms)]
    changed = any(arm.events for arm in comparison.arms)
    if changed:
        found.append(("Links changed while arms trained (events.json); what was found of them is from before.", ""))
    found += [(text, "") for text in _codecs(comparison.arms, arms)]
    found += [(text, "") for text in (*_sparse_sync(facts, arms), *_hours(comparison))]
    found += [(text, "") for text in _closed_forms(comparison) if not changed]
    return [*found, (_evidence(comparison), "dim")]


def _invalid(arms: Sequence[ArmRecord]) -> Iterator[str]:
    for arm in arms:
        if not arm.valid:
            yield f"{arm.arm} is not valid: {'; '.join(arm.why or ('no reason was noted',))}."


def _suspect(arms: Sequence[ArmRecord]) -> Iterator[str]:
    """Times that something may have prolonged, which count all the same."""
    for arm in arms:
        steps, syncs = arm.suspect_steps, arm.suspect_syncs
        if steps or syncs:
            what = [counted(steps, "step")] * bool(steps) + [counted(syncs, "synchronisation")] * bool(syncs)
            yield f"{arm.arm}: {' and '.join(what)} suspect: {arm.suspect_why or 'no reason was noted'}."


def _codecs(arms: Sequence[ArmRecord], by_name: dict[str, ArmRecord]) -> Iterator[str]:
    """What each codec won and what it cost, against the exact exchange on the same link."""
    exact = by_name.get("decentralised")
    for arm in arms:
        if arm.arm in ("centralised", "decentralised") or arm.exchange == "local":
            continue
        parts = [*_won(arm, exact), *_paid(arm)]
        if parts:
            yield f"{arm.arm}, against exact exchange on the same link: {', '.join(parts)}."
    control = by_name.get("control")
    if control is not None and usable(worse := control.val_loss_above_decentralised):
        recall = control.recall_accuracy_remote
        answers = f" and {percent(recall)} of the remote recall right" if usable(recall) else ""
        yield f"No exchange at all (control): validation loss {nats_above(worse)} nats{answers}."


def _won(arm: ArmRecord, exact: ArmRecord | None) -> Iterator[str]:
    share, mine, theirs = arm.kv_bytes_vs_decentralised, _step(arm), _step(exact) if exact else None
    if usable(share):
        yield f"{percent(share)} of the K and V bytes"
    if exact and mine and theirs:
        faster = theirs / mine
        doubt = "" if arm.valid and exact.valid else " (not valid)"
        words = f"{significant(faster)} × as fast" if faster >= 1 else f"{significant(1 / faster)} × as long"
        yield f"steps {words}{doubt}"


def _paid(arm: ArmRecord) -> Iterator[str]:
    loss, recovered = arm.val_loss_above_decentralised, arm.recovered_fraction
    if usable(loss):
        yield f"validation loss {nats_above(loss)} nats"
    if usable(recovered):
        yield f"{percent(recovered)} recovered of what exchange gives on remote tokens"


def _step(arm: ArmRecord) -> float | None:
    """Seconds of a step, its share of synchronisation included."""
    mean, sync = arm.step_seconds_mean, arm.sync_seconds_per_step
    return mean + (sync if usable(sync) else 0.0) if usable(mean) and mean > 0 else None


def _sparse_sync(facts: Conditions, by_name: dict[str, ArmRecord]) -> Iterator[str]:
    exact = by_name.get("decentralised")
    if exact is not None and usable(cost := exact.val_loss_above_centralised):
        yield (
            f"Sparse synchronisation alone (decentralised against centralised, weights averaged every "
            f"{facts.sync_every} steps): validation loss {nats_above(cost)} nats."
        )


def _hours(comparison: Comparison) -> Iterator[str]:
    ends = comparison.table.dropna(subset=["time_seconds"]).groupby("arm")["time_seconds"].max()
    whole = [
        f"{arm.arm} {duration(float(ends[arm.arm]) + comparison.record.warm_start_seconds)}"
        for arm in comparison.arms
        if arm.arm in ends.index and ends[arm.arm] > 0
    ]
    if whole:
        kind = comparison.record.warm_start_kind
        seconds = comparison.record.warm_start_seconds
        warm = f", {duration(seconds)} of {kind} warm start included" if seconds else ""
        yield f"A whole run takes: {', '.join(whole)}{warm}."


def _closed_forms(comparison: Comparison) -> Iterator[str]:
    facts, apart, other = comparison.record, [], []
    for arm in comparison.arms:
        mean, closed, elsewhere = (
            arm.step_seconds_mean,
            arm.closed_form_step_seconds,
            arm.other_accounting_step_seconds,
        )
        silent = not arm.wire_bytes_per_step and arm.compute_kind == "measured"  # nothing to compare
        if usable(mean) and usable(closed) and closed > 0 and arm.link != "modelled" and not silent:
            apart.append(abs(mean / closed - 1))
        if usable(elsewhere) and arm.link != "modelled":
            other.append(f"{arm.arm} {significant(elsewhere)} s")
    if apart:
        yield f"Step times lie within {percent(max(apart))} of compute + bytes / measured goodput."
    if other:
        names = {"pair": "all of a node's traffic together (nic)", "nic": "each pair of nodes (pair)"}
        whose = names[facts.accounting]
        yield (
            f"Were {rate(facts.bandwidth_bps)} the rate of {whose}, "
            f"a step would take, by closed form: {', '.join(other)}."
        )


def _evidence(comparison: Comparison) -> str:
    return kinds_sentence(comparison)
