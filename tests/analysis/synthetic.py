"""A comparison like a real one, made up: for tests, and for looking at figures."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from testbed.analysis.comparison.baselines import relate
from testbed.analysis.comparison.load import Comparison, results_table
from testbed.records import (
    ArmRecord,
    ArmSummary,
    ComparisonRecord,
    LearnedSeries,
    LinkGoodput,
    StepRecord,
    TimedSeries,
    Validation,
)

__all__ = ["made_up", "shown", "step_record", "with_arm"]

Mode = Literal["composed", "live", "unpaced"]

_STEP = {"centralised": 2.6, "decentralised": 62.0, "subspace": 4.4, "latent": 4.41, "control": 2.34}
_LOSS = {"centralised": 1.81, "decentralised": 1.83, "subspace": 2.25, "latent": 1.832, "control": 2.04}
_RECALL = {"centralised": 0.999, "decentralised": 0.998, "subspace": 0.31, "latent": 0.997, "control": 0.08}
_KV = {
    "centralised": 15.03e9,
    "decentralised": 6.44e9,
    "subspace": 0.2255e9,
    "latent": 0.2262e9,
    "control": 0.0,
}
_STEPS, _EVERY = 250, 50


def made_up(*, mode: Mode = "composed", nodes: int = 4) -> tuple[ComparisonRecord, dict[str, ArmSummary]]:
    """What stands in `comparison.json`, and the arms' summaries by name."""
    rng = np.random.default_rng(1)
    paced = mode != "unpaced"
    arms = relate([_arm(name, mode) for name in _STEP])
    record = ComparisonRecord(
        name="2026-11-20_12-00-00_made-up",
        nodes=nodes,
        nodes_of_target=8 if paced else None,
        accounting="pair",
        framing="layer2",
        bandwidth_bps=300_000_000,
        delay_seconds=0.0,
        loss=0.0,
        network_links=(),
        preset="quick",
        target="paper-800m" if paced else None,
        pace="paper-800m" if paced else "none",
        mode=mode,
        seed=0,
        warm_start_seconds=250 * 0.7,
        warm_start_kind="modelled" if paced else "measured",
        warm_start_sha256="0" * 64,
        corpus_sha256="1" * 64,
        congestion_control="reno",
        backend="netns",
        schedule=None,
        sync_every=_EVERY,
        void=None,
        run_seconds=60.0,
        links=_links(rng, nodes),
        arms=tuple(arms),
    )
    return record, {arm.arm: _summary(arm, mode, rng) for arm in arms}


def with_arm(record: ComparisonRecord, name: str, **changes: Any) -> ComparisonRecord:
    """With these fields of one arm."""
    arms = tuple(replace(arm, **changes) if arm.arm == name else arm for arm in record.arms)
    return replace(record, arms=arms)


def shown(record: ComparisonRecord, summaries: dict[str, ArmSummary]) -> Comparison:
    """With its table."""
    return Comparison(record=record, table=results_table(record, summaries))


def _links(rng: np.random.Generator, nodes: int) -> tuple[LinkGoodput, ...]:
    expected = 300e6 * 1448 / 1514
    return tuple(
        LinkGoodput(
            name=f"n{one}->n{other}",
            direction="pair",
            expected_bps=expected,
            alone_bps=expected * (1 + rng.normal(0, 0.001)),
            together_bps=expected * (1 + rng.normal(-0.003, 0.002)),
            phase=phase,
        )
        for phase in ("before", "after")
        for one in range(nodes)
        for other in range(nodes)
        if one != other
    )


def _arm(name: str, mode: Mode) -> ArmRecord:
    step, fast = _STEP[name], name == "centralised"
    compute = 2.34 + (0.06 if name in ("subspace", "latent") else 0)
    sync = 0.06 if fast else 85.4 / _EVERY
    return ArmRecord(
        arm=name,
        exchange="local" if name == "control" else "all-gather",
        codec={"subspace": "subspace", "latent": "latent"}.get(name, "exact"),
        sync="gradients" if fast else "average",
        link="unshaped" if mode == "unpaced" and fast else "modelled" if fast else "shaped",
        rate_bps=100e9 if fast else 300e6,
        rate_measured_bps=None if fast else 299.2e6,
        valid=True,
        why=(),
        steps=_STEPS,
        learned_steps=_STEPS,
        final_val_loss=_LOSS[name],
        val_loss_text=_LOSS[name] + 0.6,
        val_loss_remote=4.6 * (1 - _RECALL[name]) + 0.01,
        recall_accuracy_remote=_RECALL[name],
        step_seconds_mean=step,
        step_seconds_ci95=step * 0.008,
        ci95_from="steps",
        step_seconds_median=step,
        steps_timed=3 if step > 10 else 5,
        layers_timed=2 if step > 10 else 8,
        layers_of_target=8,
        invalid_steps=0,
        suspect_steps=0,
        suspect_syncs=0,
        compute_seconds_median=compute,
        compute_kind="measured" if mode == "unpaced" else "modelled",
        exchange_seconds_median=step - compute,
        sync_seconds_per_step=sync,
        sync_seconds_each=sync * (1 if fast else _EVERY),
        sync_fraction_timed=0.25,
        payload_by_channel={"ballast": _KV[name]},
        payload_bytes_per_step=_KV[name] + (2.8e9 if fast else 1.2e9 / _EVERY),
        kv_payload_bytes_per_step=_KV[name],
        wire_bytes_per_step=None if fast else (_KV[name] + 1.2e9 / _EVERY) * 1.046,
        sync_payload_bytes_each=None,
        sync_wire_bytes_each=None,
        tokens_per_second=131072 / step,
        wall_seconds=60.0,
        closed_form_step_seconds=step * 1.004,
        other_accounting_step_seconds=compute + (step - compute) * 7,
    )


def step_record(number: int, seconds: float, **changes: Any) -> StepRecord:
    """A valid step of so many seconds."""
    step = StepRecord(
        step=number,
        step_seconds=seconds,
        compute_seconds=0.5 * seconds,
        exchange_seconds=0.5 * seconds,
        compute_cpu_seconds=0.1 * seconds,
        sync_seconds=0.0,
        loss=1.5,
        payload_bytes={},
        wire_tx_bytes=None,
        valid=True,
    )
    return replace(step, **changes)


def _summary(arm: ArmRecord, mode: Mode, rng: np.random.Generator) -> ArmSummary:
    name = arm.arm
    step, final = _STEP[name], _LOSS[name]
    number = np.arange(1, _STEPS + 1)
    losses = final + (2.95 - final) * np.exp(-number / 70) + rng.normal(0, 0.05, _STEPS)
    validations = tuple(
        Validation(
            step=at,
            val_loss=final + (2.95 - final) * float(np.exp(-at / 70)) * (at < _STEPS),
            val_loss_text=final + 0.6,
            val_loss_remote=4.6 * (1 - _RECALL[name]),
            recall_accuracy_remote=_RECALL[name] * at / _STEPS,
        )
        for at in range(_EVERY, _STEPS + 1, _EVERY)
    )
    count = 5 if mode == "composed" else _STEPS
    times = step * (1 + rng.normal(0, 0.005, count))
    timed = [step_record(index, float(seconds)) for index, seconds in enumerate(times)]
    if mode != "composed":
        clocks = zip(timed, np.cumsum(times), losses, strict=True)
        timed = [replace(entry, time_seconds=float(clock), loss=float(loss)) for entry, clock, loss in clocks]
    sync = (0.06,) * 5 if name == "centralised" else (85.4,)
    return ArmSummary(
        **vars(arm),
        learned=LearnedSeries(loss=tuple(losses.tolist()), validations=validations),
        timed=TimedSeries(steps=tuple(timed), sync_seconds=sync),
    )
