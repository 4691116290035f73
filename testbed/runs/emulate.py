"""`testbed emulate`: a comparison from settings to `comparison.json`, or to FAILED with the reason."""

import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from emulation.network import FRAMING
from emulation.nodes.base import Backend
from emulation.nodes.host import HostBackend
from emulation.nodes.netns import NetnsBackend
from testbed.analysis.compose import mean_interval
from testbed.analysis.load import write_results
from testbed.analysis.relations import relate, void_reason
from testbed.config import Arm
from testbed.pace import plan_for
from testbed.runs.comparison import MOST_INVALID, ArmResult, Comparison, Report
from testbed.runs.directory import environment, write_json
from testbed.runs.records import Step
from testbed.runs.settings import Settings

__all__ = ["emulate", "make_backend"]


def make_backend(settings: Settings) -> Backend:
    """Nodes for the settings' network, not yet built."""
    return NetnsBackend(settings.network) if settings.backend == "netns" else HostBackend(settings.network)


def emulate(settings: Settings, report: Report) -> dict[str, Any]:
    """Run the comparison; what is in `comparison.json`. Whatever stops it is written to FAILED and raised."""
    settings.folder.mkdir(parents=True)
    write_json(settings.folder / "config.json", _config(settings))
    started, where = time.monotonic(), environment()
    try:
        with ExitStack() as stack:
            backend = stack.enter_context(make_backend(settings))
            comparison = Comparison(settings, backend, report)
            comparison.run()
            record = _write_all(comparison, where, time.monotonic() - started)
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{error}"
        with suppress(OSError):  # the first error is the one to tell
            (settings.folder / "FAILED").write_text(f"{type(error).__name__}: {reason}\n")
        raise
    return record


def _config(settings: Settings) -> dict[str, Any]:
    data = asdict(settings) | {"folder": str(settings.folder), "mode": settings.mode}
    return {key: value for key, value in data.items() if key != "network"} | {"nodes": settings.nodes}


def _write_all(comparison: Comparison, where: dict[str, Any], wall_seconds: float) -> dict[str, Any]:
    settings = comparison.settings
    arms, summaries = [], {}
    for result in comparison.results.values():
        record = arm_record(comparison, result)
        arms.append(record)
    arms = relate(arms)
    for result, record in zip(comparison.results.values(), arms, strict=True):
        folder = settings.folder / result.arm.name
        comparison.links.write(result.arm, result.link)
        write_json(folder / "config.json", {"arm": asdict(result.arm), "plan": result.plan and asdict(result.plan)})
        (folder / "command.txt").write_text(settings.command + "\n")
        write_json(folder / "environment.json", where)
        write_json(folder / "ledger.json", {"ranks": result.ledger})
        summaries[result.arm.name] = record | _series(result)
        write_json(folder / "summary.json", summaries[result.arm.name])
    record = comparison_record(comparison, arms, wall_seconds)
    write_results(settings.folder, record, summaries)
    write_json(settings.folder / "comparison.json", record)
    return record


def comparison_record(comparison: Comparison, arms: list[dict[str, Any]], wall_seconds: float) -> dict[str, Any]:
    """What stands in `comparison.json`."""
    settings, target = comparison.settings, comparison.settings.target
    warm_seconds, warm_kind = _warm_start(comparison)
    return {
        "schema_version": 1,
        "name": settings.folder.name,
        "nodes": settings.nodes,
        "nodes_of_target": target.nodes if target else None,
        "accounting": settings.accounting,
        "framing": FRAMING,
        "bandwidth_bps": settings.link.rate_bps,
        "delay_seconds": settings.link.delay_us / 1e6,
        "preset": settings.preset_name,
        "target": target.name if target else None,
        "pace": target.name if target else "none",
        "mode": settings.mode,
        "seed": settings.seed,
        "sync_every": settings.preset.sync_every,
        "warm_start_seconds": warm_seconds,
        "warm_start_kind": warm_kind,
        "warm_start_sha256": comparison.warm["sha256"],
        "corpus_sha256": comparison.warm["corpus_sha256"],
        "congestion_control": ", ".join(
            comparison.links.backend.describe().get("congestion_control") or ["the host's"]
        ),
        "backend": settings.backend,
        "void": void_reason(arms),
        "run_seconds": wall_seconds,
        "links": comparison.links.evidence(),
        "arms": arms,
    }


def _warm_start(comparison: Comparison) -> tuple[float, str]:
    """Its time, charged to every arm: at the target's speed on the cluster's link, or as this machine took.

    Paced, each step is the target's compute for short contexts and a gradient all-reduce on the fast link.
    """
    settings, target = comparison.settings, comparison.settings.target
    if target is None:
        return comparison.warm["seconds"], "measured"
    arm = Arm(name="warm start", exchange="local", sync="gradients", link="fast")
    plan = plan_for(arm, target, timed_layers=target.layers, **comparison.links.modelled(arm))
    assert plan.modelled_goodput_bps is not None
    step = target.short_step_seconds() + plan.sync_seconds(plan.modelled_goodput_bps)
    return settings.preset.warm_steps * step, "modelled"


def arm_record(comparison: Comparison, result: ArmResult) -> dict[str, Any]:
    """An arm of `comparison.json`, before it is related to the others."""
    settings, links, plan = comparison.settings, comparison.links, result.plan
    valid = [step for step in result.steps if step.valid]
    why = list(result.problems)
    if len(result.steps) - len(valid) > MOST_INVALID * len(result.steps):
        reasons = {step.why[0] for step in result.steps if not step.valid}
        why.append(f"{len(result.steps) - len(valid)} of {len(result.steps)} steps are invalid: {min(reasons)}")
    used = valid or result.steps
    mean, interval = mean_interval([step.step_seconds for step in used])
    last = result.validations[-1]
    sync_each = fmean(result.sync_seconds) if result.sync_seconds else None
    every = 1 if result.arm.sync == "gradients" else settings.preset.sync_every
    sync = sync_each / every if sync_each is not None else None
    payload = _payload(result, settings.nodes)
    steps = settings.preset.steps if settings.mode == "composed" else len(result.steps)
    context = (
        settings.target.nodes * settings.target.tokens_per_node
        if settings.target
        else (settings.preset.context * settings.preset.batch)
    )
    shaped = result.link == "shaped"
    return {
        "arm": result.arm.name,
        "exchange": result.arm.exchange,
        "codec": result.arm.codec.name if result.arm.exchange != "local" else None,
        "sync": result.arm.sync,
        "link": result.link,
        "rate_bps": settings.link.rate_bps if shaped else None,
        "modelled_goodput_bps": plan.modelled_goodput_bps if plan else None,
        "goodput_measured_bps": links.goodput_bps() if shaped else None,
        "rate_measured_bps": _rate_measured(comparison) if shaped else None,
        "machine_carries_bps": links.capacity.get("aggregate_bps"),
        "valid": not why,
        "why": why,
        "steps": steps,
        "learned_steps": len(result.learned.loss) if result.learned else None,
        "final_val_loss": last["val_loss"],
        "val_loss_text": last["val_loss_text"],
        "val_loss_remote": last["val_loss_remote"],
        "recall_accuracy_remote": last["recall_accuracy_remote"],
        "step_seconds_mean": mean,
        "step_seconds_ci95": interval if len(used) > 1 else None,
        "step_seconds_median": median(step.step_seconds for step in used),
        "steps_timed": len(used),
        "invalid_steps": len(result.steps) - len(valid),
        "layers_timed": plan.timed_layers if plan else None,
        "layers_of_target": plan.layers if plan else None,
        "compute_seconds_median": median(step.compute_seconds for step in used),
        "compute_kind": "modelled" if plan else "measured",
        "exchange_seconds_median": median(step.exchange_seconds for step in used),
        "sync_seconds_per_step": sync,
        "sync_seconds_each": sync_each,
        "sync_fraction_timed": result.sync_fraction,
        "payload_by_channel": payload,
        "payload_bytes_per_step": sum(payload.values()),
        "kv_payload_bytes_per_step": sum(count for name, count in payload.items() if name not in ("other", "weights")),
        "wire_bytes_per_step": _wire(result, [step.wire_tx_bytes for step in used]),
        "sync_payload_bytes_each": fmean(sync.payload_bytes for sync in result.syncs) if result.syncs else None,
        "sync_wire_bytes_each": _wire(result, [sync.wire_tx_bytes for sync in result.syncs]),
        "tokens_per_second": context / (mean + (sync or 0.0)),
        "wall_seconds": steps * (mean + (sync or 0.0)),
        "closed_form_step_seconds": _closed_form(comparison, result, used, payload),
        "other_accounting_step_seconds": links.other_accounting_seconds(plan) if plan and shaped else None,
    }


def _closed_form(
    comparison: Comparison, result: ArmResult, used: list[Step], payload: dict[str, float]
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


def _rate_measured(comparison: Comparison) -> float:
    """The rate that the measured goodput amounts to, as the shaper counts."""
    before = comparison.links.measured["before"]
    assert comparison.settings.link.rate_bps is not None
    together = [link["ratio"] for link in before["links"] if link["phase"] == "together"]
    return comparison.settings.link.rate_bps * fmean(together)


def _payload(result: ArmResult, nodes: int) -> dict[str, float]:
    """Bytes that a node hands over in a step, by channel; where the link is modelled, what the target would."""
    step = result.steps[-1].payload_bytes
    if result.link != "modelled" or result.plan is None:
        return dict(step)
    plan, others = result.plan, nodes - 1
    per_direction = plan.layers * plan.message_bytes * others
    own = {channel: count for channel, count in step.items() if channel not in ("ballast", "other", "weights")}
    weights = 2 * plan.sync_message_bytes * others if result.arm.sync == "gradients" else 0
    return own | {"ballast": 2 * per_direction - sum(own.values()), "weights": weights}


def _wire(result: ArmResult, counted: list[float | None]) -> float | None:
    """The mean of what the queues counted; nothing where they did not, or where the link is modelled."""
    known = [count for count in counted if count is not None]
    return fmean(known) if known and result.link != "modelled" else None


def _series(result: ArmResult) -> dict[str, Any]:
    """What a summary holds beyond the record: losses and times step by step."""
    learned = {
        "loss": result.learned.loss if result.learned else [],
        "validations": result.validations,
    }
    timed = {
        "steps": [{"step": index, **asdict(step)} for index, step in enumerate(result.steps)],
        "sync_seconds": result.sync_seconds,
    }
    return {"learned": learned, "timed": timed}
