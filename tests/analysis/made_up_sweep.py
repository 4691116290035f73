"""A sweep's folder with invented numbers that follow a known law: a step takes a + b/B + delay seconds."""

from itertools import product
from pathlib import Path

from testbed.records import (
    CellEntry,
    CellSummary,
    Conditions,
    LearnedCell,
    LearnedSeries,
    Place,
    PointNetwork,
    SweepConfig,
    TimedSeries,
    Validation,
    write_json,
)
from tests.analysis.synthetic import step_record

COMPUTE = 2.0
BITS = {"decentralised": 15e9, "subspace": 0.5e9, "control": 0.0}
LOSS = {"decentralised": 1.0, "subspace": 1.2, "control": 2.0}
EXCHANGES = 16
MACHINE = Place(
    commit=None,
    python="3.11",
    packages={"torch": "2"},
    host="0a0a0a0a",
    kernel="6.1",
    cpu="a processor",
    cpu_features=("avx2",),
)


def seconds(arm: str, bandwidth: float, delay: float) -> float:
    """Of a step."""
    return COMPUTE + (BITS[arm] / bandwidth + EXCHANGES * delay if BITS[arm] else 0.0)


def made_up_sweep(
    folder: Path,
    *,
    rates=(30e6, 100e6, 300e6, 1e9),
    delays=(0.0, 0.02),
    arms=("decentralised", "subspace", "control"),
    seeds=(0, 1),
    steps=20,
    half=0.001,
    failed=(),
    invalid=(),
    suspect=(),
    older=(),
    excluded=(),
) -> SweepConfig:
    """Write it; its config.json. `half`: of each step's interval, relative. By (arm, rate): `failed` has no summary,
    `invalid` one whose measurement broke, `suspect` steps that were prolonged, `older` one of another state."""
    (folder / "learned").mkdir(parents=True)
    cells = []
    for arm, seed in product(arms, seeds):
        write_json(folder / "learned" / f"{arm}-{seed}.json", _learned(arm, seed, steps))
    for rate, delay, arm in product(rates, delays, arms):
        name = f"{arm}-{rate:g}-{delay:g}"
        cells.append(
            CellEntry(
                cell=name,
                arm=arm,
                point={"bw": f"{rate / 1e6:g}mbit", "delay": f"{1000 * delay:g}ms"},
                network=PointNetwork(bandwidth_bps=rate, one_way_delay_seconds=delay, packet_loss=0.0),
                learned={seed: f"{arm}-{seed}" for seed in seeds},
                older="loss of other code" if (arm, rate) in older else "",
            )
        )
        if (arm, rate) not in failed:
            wrong = ("the link was not what was asked",) if (arm, rate) in invalid else ()
            summary = _summary(cells[-1], half, wrong, suspect_steps=2 if (arm, rate) in suspect else 0)
            write_json(folder / "cells" / name / "summary.json", summary)
    config = SweepConfig(
        kind="sweep",
        title="Invented <b>numbers</b>",
        question="Do the tables follow the law?",
        exact="decentralised",
        control="control",
        sweep={},
        varied=("bw", "delay"),
        cells=tuple(cells),
        excluded=tuple(excluded),
    )
    write_json(folder / "config.json", config)
    return config


def _learned(arm: str, seed: int, steps: int) -> LearnedCell:
    losses = [LOSS[arm] + 3 / (1 + step) + 0.01 * seed for step in range(steps)]
    validations = [
        Validation(step=step, val_loss=loss, val_loss_remote=loss + 1, recall_accuracy_remote=0.5)
        for step, loss in ((0, losses[0]), (steps // 2, losses[steps // 2]), (steps, losses[-1]))
    ]
    return LearnedCell(
        cell=f"{arm}-{seed}",
        config={},
        asked={},
        content={},
        environment=MACHINE,
        corpus_sha256="",
        warm_sha256="",
        losses=tuple(losses),
        rank_losses=[],
        validations=tuple(validations),
        validation_exact=validations[-1],
        drift=(),
        bytes_per_token_layer={},
        payload_bytes_per_step={},
        sync_bytes_each=0,
        codec={},
        parameters=1,
        seconds=1.0,
        cpu_seconds=1.0,
    )


def _summary(entry: CellEntry, half: float | None, wrong: tuple[str, ...], *, suspect_steps: int) -> CellSummary:
    arm, rate, delay = entry.arm, entry.network.bandwidth_bps, entry.network.one_way_delay_seconds
    mean = seconds(arm, rate, delay)
    return CellSummary(
        arm=arm,
        exchange="local" if arm == "control" else "all-gather",
        codec=None if arm == "control" else "exact",
        sync="average",
        link="shaped",
        rate_bps=rate,
        rate_measured_bps=rate * 1.0005,
        goodput_measured_bps=rate * 0.956,
        step_seconds_mean=mean,
        step_seconds_ci95=half and half * mean,
        ci95_from="steps",
        step_seconds_median=mean,
        steps=20,
        steps_timed=3,
        learned_steps=None,
        layers_timed=8,
        layers_of_target=8,
        compute_seconds_median=COMPUTE,
        compute_kind="modelled",
        exchange_seconds_median=mean - COMPUTE,
        sync_seconds_each=0.0,
        sync_seconds_per_step=0.0,
        sync_fraction_timed=1.0,
        closed_form_step_seconds=mean,
        other_accounting_step_seconds=None,
        payload_bytes_per_step=BITS[arm] / 8,
        kv_payload_bytes_per_step=BITS[arm] / 8,
        wire_bytes_per_step=BITS[arm] / 8 * 1.05,
        sync_payload_bytes_each=None,
        sync_wire_bytes_each=0.0,
        payload_by_channel={"ballast": BITS[arm] / 8},
        invalid_steps=0,
        suspect_steps=suspect_steps,
        suspect_syncs=0,
        tokens_per_second=131072 / mean,
        wall_seconds=20 * mean,
        valid=not wrong,
        why=wrong,
        final_val_loss=LOSS[arm],
        val_loss_text=None,
        val_loss_remote=None,
        recall_accuracy_remote=None,
        timed=TimedSeries(steps=tuple(step_record(number, mean) for number in range(3))),
        learned=LearnedSeries(),
        cell=entry.cell,
        point=entry.point,
        asked={},
        content={},
        network=Conditions(
            name="made up",
            mode="composed",
            seed=0,
            nodes=4,
            nodes_of_target=8,
            accounting="pair",
            framing="layer2",
            bandwidth_bps=rate,
            delay_seconds=delay,
            loss=0.0,
            network_links=(),
            preset="quick",
            target="made up",
            pace="made up",
            sync_every=10,
            warm_start_seconds=1.0,
            warm_start_kind="modelled",
            warm_start_sha256="",
            corpus_sha256="",
            congestion_control="reno",
            backend="netns",
            schedule=None,
            links=(),
        ),
    )
