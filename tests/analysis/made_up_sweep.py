"""A sweep's folder with invented numbers that follow a known law: a step takes a + b/B + delay seconds."""

import json
from itertools import product
from pathlib import Path

COMPUTE = 2.0
BITS = {"decentralised": 15e9, "subspace": 0.5e9, "control": 0.0}
LOSS = {"decentralised": 1.0, "subspace": 1.2, "control": 2.0}
EXCHANGES = 16
MACHINE = {"host": "0a0a0a0a", "kernel": "6.1", "cpu": "a processor", "cpu_features": ["avx2"]}


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
) -> dict:
    """Write it; its config.json. `half`: of each step's interval, relative. By (arm, rate): `failed` has no summary,
    `invalid` one whose measurement broke, `suspect` steps that were prolonged, `older` one of another state."""
    (folder / "learned").mkdir(parents=True)
    cells = []
    for arm, seed in product(arms, seeds):
        losses = [LOSS[arm] + 3 / (1 + step) + 0.01 * seed for step in range(steps)]
        validations = [
            {"step": step, "val_loss": loss, "val_loss_remote": loss + 1, "recall_accuracy_remote": 0.5}
            for step, loss in ((0, losses[0]), (steps // 2, losses[steps // 2]), (steps, losses[-1]))
        ]
        learned = {"schema_version": 1, "losses": losses, "validations": validations, "environment": MACHINE}
        (folder / "learned" / f"{arm}-{seed}.json").write_text(json.dumps(learned))
    for rate, delay, arm in product(rates, delays, arms):
        name = f"{arm}-{rate:g}-{delay:g}"
        point = {"bw": f"{rate / 1e6:g}mbit", "delay": f"{1000 * delay:g}ms"}
        network = {"bandwidth_bps": rate, "one_way_delay_seconds": delay, "packet_loss": 0.0}
        learned = {seed: f"{arm}-{seed}" for seed in seeds}
        cells.append({"cell": name, "arm": arm, "point": point, "network": network, "learned": learned})
        cells[-1]["older"] = "loss of other code" if (arm, rate) in older else ""
        if (arm, rate) in failed:
            continue
        (folder / "cells" / name).mkdir(parents=True)
        summary = _summary(arm, rate, delay, half)
        if (arm, rate) in invalid:
            summary |= {"valid": False, "why": ["the link was not what was asked"]}
        if (arm, rate) in suspect:
            summary |= {"suspect_steps": 2}
        (folder / "cells" / name / "summary.json").write_text(json.dumps(summary))
    config = {
        "schema_version": 1,
        "kind": "sweep",
        "sweep": {
            "title": "Invented <b>numbers</b>",
            "question": "Do the tables follow the law?",
            "exact": "decentralised",
            "control": "control",
        },
        "varied": ["bw", "delay"],
        "cells": cells,
        "excluded": [],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return config


def _summary(arm: str, rate: float, delay: float, half: float) -> dict:
    mean = seconds(arm, rate, delay)
    return {
        "exchange": "local" if arm == "control" else "all-gather",
        "codec": None if arm == "control" else "exact",
        "sync": "average",
        "link": "shaped",
        "rate_bps": rate,
        "rate_measured_bps": rate * 1.0005,
        "goodput_measured_bps": rate * 0.956,
        "step_seconds_mean": mean,
        "step_seconds_ci95": half and half * mean,
        "ci95_from": "steps",
        "steps_timed": 3,
        "layers_timed": 8,
        "layers_of_target": 8,
        "compute_seconds_median": COMPUTE,
        "exchange_seconds_median": mean - COMPUTE,
        "sync_seconds_each": 0.0,
        "sync_seconds_per_step": 0.0,
        "closed_form_step_seconds": mean,
        "kv_payload_bytes_per_step": BITS[arm] / 8,
        "wire_bytes_per_step": BITS[arm] / 8 * 1.05,
        "sync_wire_bytes_each": 0.0,
        "payload_by_channel": {"ballast": BITS[arm] / 8},
        "invalid_steps": 0,
        "suspect_steps": 0,
        "suspect_syncs": 0,
        "tokens_per_second": 131072 / mean,
        "valid": True,
        "why": [],
        "timed": {"steps": [{"step": i, "step_seconds": mean, "valid": True} for i in range(3)], "sync_seconds": []},
        "learned": {"loss": [], "validations": []},
        "network": {
            "mode": "composed",
            "seed": 0,
            "nodes": 4,
            "nodes_of_target": 8,
            "accounting": "pair",
            "bandwidth_bps": rate,
            "delay_seconds": delay,
            "loss": 0.0,
            "preset": "quick",
            "target": "made up",
            "sync_every": 10,
        },
    }
