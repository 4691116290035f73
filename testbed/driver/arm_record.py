"""What `comparison.json` says of one arm, from what was measured of it. Keys carry their units."""

from statistics import fmean, median

from testbed.driver.combine import Step
from testbed.driver.comparison import MOST_INVALID, ComparisonRun
from testbed.driver.results import ArmResult
from testbed.intervals import mean_interval
from testbed.records import ArmRecord, Ledger, StepEntry
from testbed.settings.emulate import Settings

__all__ = ["arm_record"]


def arm_record(comparison: ComparisonRun, result: ArmResult) -> ArmRecord:
    """An arm, before it is related to the others."""
    settings, links, plan, arm = comparison.settings, comparison.links, result.plan, result.arm
    shaped, composed, last = result.link == "shaped", settings.mode == "composed", result.validations[-1]
    invalid, why = _doubts(comparison, result)
    used = [step for step in result.steps if step.valid] or result.steps
    payload = _payload(result, settings.nodes)
    step_seconds, interval = mean_interval([step.step_seconds for step in used])
    sync_each, sync_per_step = _sync(result, settings.preset.sync_every)
    seconds, steps = step_seconds + (sync_per_step or 0.0), settings.preset.steps if composed else len(result.steps)
    return ArmRecord(
        arm=arm.name,
        exchange=arm.exchange,
        codec=arm.codec.name if arm.exchanges else None,
        sync=arm.sync,
        link=result.link,
        rate_bps=settings.rate_bps if shaped else None,
        modelled_goodput_bps=plan.modelled_goodput_bps if plan else None,
        goodput_measured_bps=links.goodput_bps() if shaped else None,
        rate_measured_bps=_rate_measured(comparison) if shaped else None,
        events=len(result.events),
        machine_carries_bps=links.capacity.aggregate_bps if links.capacity else None,
        valid=not why,
        why=tuple(why),
        caution=arm.caution,
        invalid_steps=invalid,
        suspect_steps=sum(bool(step.suspect) for step in result.steps),
        suspect_syncs=sum(bool(sync.suspect or sync.problems) for sync in result.syncs),
        suspect_why=next((each.suspect[0] for each in (*result.steps, *result.syncs) if each.suspect), None),
        ledger=_ledger(result),
        steps=steps,
        learned_steps=len(result.learned.series.loss) if result.learned else None,
        final_val_loss=last.val_loss,
        val_loss_text=last.val_loss_text,
        val_loss_remote=last.val_loss_remote,
        recall_accuracy_remote=last.recall_accuracy_remote,
        step_seconds_mean=step_seconds,
        step_seconds_ci95=interval if len(used) > 1 else used[0].unsure_seconds,
        ci95_from="steps" if len(used) > 1 else "exchanges" if used[0].unsure_seconds is not None else None,
        step_seconds_median=median(step.step_seconds for step in used),
        steps_timed=len(used),
        layers_timed=plan.timed_layers if plan else None,
        layers_of_target=plan.layers if plan else None,
        compute_seconds_median=median(step.compute_seconds for step in used),
        compute_kind="modelled" if plan else "measured",
        exchange_seconds_median=median(step.exchange_seconds for step in used),
        sync_seconds_per_step=sync_per_step,
        sync_seconds_each=sync_each,
        sync_fraction_timed=result.sync_fraction,
        payload_by_channel=payload,
        payload_bytes_per_step=sum(payload.values()),
        kv_payload_bytes_per_step=sum(count for name, count in payload.items() if name not in ("other", "weights")),
        wire_bytes_per_step=_wire(result, [step.wire_tx_bytes for step in used]),
        sync_payload_bytes_each=fmean(sync.payload_bytes for sync in result.syncs) if result.syncs else None,
        sync_wire_bytes_each=_wire(result, [sync.wire_tx_bytes for sync in result.syncs]),
        closed_form_step_seconds=_closed_form(comparison, result, used, payload),
        tokens_per_second=_tokens(settings) / seconds,
        wall_seconds=steps * seconds,
        other_accounting_step_seconds=links.other_accounting_seconds(plan) if plan and shaped else None,
    )


def _sync(result: ArmResult, every: int) -> tuple[float | None, float | None]:
    """Seconds of a synchronisation, and its share of a step; `every`: steps between two averagings."""
    if not result.sync_seconds:
        return None, None
    each = fmean(result.sync_seconds)
    return each, each / (1 if result.arm.sync == "gradients" else every)


def _doubts(comparison: ComparisonRun, result: ArmResult) -> tuple[int, list[str]]:
    """How many steps are invalid, and what makes the arm so."""
    invalid = [step for step in result.steps if not step.valid]
    why, valid = list(result.problems), len(result.steps) - len(invalid)
    again = comparison.settings.mode == "composed"  # an invalid step was timed again, at most as many as were asked for
    if len(invalid) > (valid if again else MOST_INVALID * len(result.steps)):
        why.append(f"{len(invalid)} of {len(result.steps)} steps are invalid: {min(step.why[0] for step in invalid)}")
    return len(invalid), why


def _tokens(settings: Settings) -> int:
    """That all nodes together learn from in a step: the target's if paced."""
    if settings.target:
        return settings.target.nodes * settings.target.tokens_per_node
    return settings.preset.context * settings.preset.batch


def _ledger(result: ArmResult) -> Ledger | None:
    """From payload to interface, summed over the steps of all nodes; None where nothing counts."""
    by_rank = [[entry for entry in rank if isinstance(entry, StepEntry)] for rank in result.ledger]
    entries = [entry for rank in by_rank for entry in rank]
    if not entries or entries[0].wire_tx_bytes is None:
        return None
    wire = [entry.wire_tx_bytes or 0 for entry in entries]
    apart = [abs(count - entry.predicted_wire_bytes) for count, entry in zip(wire, entries, strict=True)]
    return Ledger(
        payload_bytes=sum(sum(entry.payload_bytes.values()) for entry in entries),
        socket_sent_bytes=sum(entry.sent for entry in entries),
        socket_resent_bytes=sum(entry.resent for entry in entries),
        predicted_wire_bytes=sum(entry.predicted_wire_bytes for entry in entries),
        wire_tx_bytes=sum(wire),
        interface_tx_bytes=sum(entry.interface_tx_bytes or 0 for entry in entries),
        # of the delay line every rank counts the same: what all nodes lost there
        queue_drops=sum(entry.queue_drops or 0 for entry in entries) + sum(entry.relay_drops for entry in by_rank[0]),
        largest_difference=max(gap / max(1, count) for gap, count in zip(apart, wire, strict=True)),
        node_steps=len(entries),
    )


def _closed_form(
    comparison: ComparisonRun, result: ArmResult, used: list[Step], payload: dict[str, float]
) -> float | None:
    """Compute + bytes / measured goodput: the target's compute if paced, else what was measured of this machine's."""
    links = comparison.links
    if result.plan:
        return links.closed_form_seconds(result.arm, result.plan)
    if result.link != "shaped":
        return None
    others = comparison.settings.nodes - 1
    exchange = sum(payload.values()) / others * 8 / links.pair_goodput_bps(result.arm)
    return median(step.compute_seconds for step in used) + exchange


def _rate_measured(comparison: ComparisonRun) -> float | None:
    """The rate that the measured goodput amounts to, as the shaper counts; None where no link was at its rate."""
    ratios = [link.ratio for link in comparison.links.bound() if link.ratio is not None]
    return comparison.settings.rate_bps * fmean(ratios) if ratios else None


def _payload(result: ArmResult, nodes: int) -> dict[str, float]:
    """Bytes that a node hands over in a step, by channel; where the link is modelled, what the target would."""
    step = result.steps[-1].payload_bytes
    if result.link != "modelled" or result.plan is None:
        return dict(step)
    plan, others = result.plan, nodes - 1
    both_ways = plan.bytes_to_a_peer(plan.layers) * others
    own = {channel: count for channel, count in step.items() if channel not in ("ballast", "other", "weights")}
    weights = 2 * plan.sync_message_bytes * others if result.arm.sync == "gradients" else 0
    return own | {"ballast": both_ways - sum(own.values()), "weights": weights}


def _wire(result: ArmResult, counted: list[float | None]) -> float | None:
    """The mean of what the queues counted; nothing where they did not, or where the link is modelled."""
    known = [count for count in counted if count is not None]
    return fmean(known) if known and result.link != "modelled" else None
