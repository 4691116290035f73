"""`testbed emulate`: a comparison from settings to `comparison.json`, or to FAILED with the reason."""

import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from emulation.nodes.base import Backend
from testbed.analysis.load import write_results
from testbed.analysis.relations import guessed, relate, void_reason
from testbed.config import Arm
from testbed.config.data import STDLIB, corpus_folder
from testbed.errors import UsageError
from testbed.pace import plan_for
from testbed.runs.arm_record import arm_record
from testbed.runs.comparison import ArmResult, Comparison
from testbed.runs.directory import environment, write_failed, write_json
from testbed.runs.nodes import make_nodes
from testbed.runs.progress import Report
from testbed.runs.records import Step
from testbed.runs.settings import Settings

__all__ = ["emulate", "make_backend", "write_arm"]


def make_backend(settings: Settings) -> Backend:
    """Nodes for the settings' network, not yet built."""
    corpus = settings.preset.data.corpus
    return make_nodes(
        settings.network.unshaped(),
        settings.backend,
        run=settings.folder.name,
        image=settings.image,
        folder=settings.folder,
        corpus=None if corpus == STDLIB else corpus_folder(corpus),
    )


def emulate(settings: Settings, report: Report) -> dict[str, Any]:
    """Run the comparison; what is in `comparison.json`. Whatever stops it is written to FAILED and raised."""
    try:
        settings.folder.mkdir(parents=True)
    except FileExistsError:  # another run has taken the name since it was checked
        raise UsageError(
            f"the run directory {settings.folder} exists already; choose another with --name (NAME=…)"
        ) from None
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
        write_failed(settings.folder, f"{type(error).__name__}: {reason}")
        raise
    return record


def _config(settings: Settings) -> dict[str, Any]:
    data: dict[str, Any] = asdict(replace(settings, schedule=None)) | {
        "folder": str(settings.folder),
        "mode": settings.mode,
    }
    data["schedule"] = settings.schedule and settings.schedule.describe()
    return {key: value for key, value in data.items() if key != "network"} | {"nodes": settings.nodes}


def _write_all(comparison: Comparison, where: dict[str, Any], wall_seconds: float) -> dict[str, Any]:
    settings = comparison.settings
    arms = relate(
        [arm_record(comparison, result) for result in comparison.results.values()],
        guessed(comparison.settings.preset.data),
    )
    summaries = {
        result.arm.name: write_arm(comparison, result, record, where)
        for result, record in zip(comparison.results.values(), arms, strict=True)
    }
    record = comparison_record(comparison, arms, wall_seconds)
    write_results(settings.folder, record, summaries)
    write_json(settings.folder / "comparison.json", record)
    return record


def write_arm(
    comparison: Comparison, result: ArmResult, record: dict[str, Any], where: dict[str, Any]
) -> dict[str, Any]:
    """The folder of an arm; its summary, which is written last."""
    folder = comparison.settings.folder_of(result.arm)
    comparison.links.write(result.arm, result.link)
    write_json(folder / "config.json", {"arm": asdict(result.arm), "plan": result.plan and asdict(result.plan)})
    (folder / "command.txt").write_text(comparison.settings.command + "\n")
    write_json(folder / "environment.json", where | comparison.interpreter)
    write_json(folder / "ledger.json", {"schema_version": 1, "ranks": result.ledger})
    if result.events:
        write_json(folder / "events.json", {"schema_version": 1, "events": result.events})
    summary = record | _series(result)
    write_json(folder / "summary.json", summary)
    return summary


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
        "framing": settings.network.framing,
        "bandwidth_bps": settings.rate_bps,
        "delay_seconds": settings.network.longest_round_trip_us / 2e6,
        "loss": max(link.loss for link in settings.network.links),
        "network_links": [asdict(link) for link in settings.network.links],
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
        "schedule": settings.schedule and settings.schedule.describe(),
        "void": void_reason(arms, guessed(comparison.settings.preset.data)),
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
    plan = plan_for(arm, settings.preset, target, timed_layers=target.layers, **comparison.links.modelled(arm))
    assert plan.modelled_goodput_bps is not None
    step = target.short_step_seconds() + plan.sync_seconds(plan.modelled_goodput_bps)
    return settings.preset.warm_steps * step, "modelled"


def _shown(step: Step) -> dict[str, Any]:
    """Without what its verdict was made of."""
    return {key: value for key, value in asdict(step).items() if not key.startswith("seen_")}


def _series(result: ArmResult) -> dict[str, Any]:
    """What a summary holds beyond the record: losses and times step by step."""
    learned = {
        "loss": result.learned.loss if result.learned else [],
        "validations": result.validations,
    }
    timed = {
        "steps": [{"step": index, **_shown(step)} for index, step in enumerate(result.steps)],
        "sync_seconds": result.sync_seconds,
    }
    return {"learned": learned, "timed": timed}
