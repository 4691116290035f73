"""`testbed emulate`: a comparison from settings to `comparison.json`, or to FAILED with the reason."""

import json
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Literal

from pydantic import JsonValue

from emulation.nodes.base import Backend
from testbed.analysis.comparison.baselines import guessed, relate, void_reason
from testbed.analysis.comparison.load import write_results
from testbed.config import Arm
from testbed.config.data import STDLIB, corpus_folder
from testbed.driver.arm_record import arm_record
from testbed.driver.backends import make_nodes
from testbed.driver.comparison import ComparisonRun
from testbed.driver.results import ArmResult
from testbed.errors import UsageError
from testbed.pace import plan_for
from testbed.records import (
    ArmRecord,
    ArmSummary,
    ComparisonRecord,
    Conditions,
    Environment,
    LearnedSeries,
    TimedSeries,
    write_json,
)
from testbed.rundir.directory import environment, write_failed
from testbed.rundir.progress import Reporter
from testbed.settings.emulate import Settings

__all__ = ["conditions", "emulate", "make_backend", "summary_of", "write_arm"]


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


def emulate(settings: Settings, report: Reporter) -> ComparisonRecord:
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
            comparison = ComparisonRun(settings, backend, report)
            comparison.run()
            record = _write_all(comparison, where, time.monotonic() - started)
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{error}"
        write_failed(settings.folder, f"{type(error).__name__}: {reason}")
        raise
    return record


def _config(settings: Settings) -> dict[str, JsonValue]:
    known = asdict(replace(settings, schedule=None)) | {"folder": str(settings.folder), "mode": settings.mode}
    known |= {"schedule": settings.schedule and settings.schedule.describe(), "nodes": settings.nodes}
    del known["network"]  # records of links have it
    return json.loads(json.dumps(known))


def _write_all(comparison: ComparisonRun, where: Environment, wall_seconds: float) -> ComparisonRecord:
    settings, guess = comparison.settings, guessed(comparison.settings.preset.data)
    results = list(comparison.results.values())
    arms = relate([arm_record(comparison, result) for result in results], guess)
    summaries = {result.arm.name: summary_of(result, record) for result, record in zip(results, arms, strict=True)}
    for result in results:
        write_arm(comparison, result, summaries[result.arm.name], where)
    record = ComparisonRecord(
        **vars(conditions(comparison)), void=void_reason(arms, guess), run_seconds=wall_seconds, arms=tuple(arms)
    )
    write_results(settings.folder, record, summaries)
    write_json(settings.folder / "comparison.json", record)
    return record


def summary_of(result: ArmResult, record: ArmRecord) -> ArmSummary:
    """The record with losses and times step by step."""
    return ArmSummary(
        **vars(record),
        learned=LearnedSeries(
            loss=result.learned.series.loss if result.learned else (), validations=tuple(result.validations)
        ),
        timed=TimedSeries(
            steps=tuple(step.record(index) for index, step in enumerate(result.steps)),
            sync_seconds=tuple(result.sync_seconds),
        ),
    )


def write_arm(comparison: ComparisonRun, result: ArmResult, summary: ArmSummary, where: Environment) -> None:
    """The folder of an arm; its summary is written last."""
    folder = comparison.settings.folder_of(result.arm)
    comparison.links.write(result.arm, result.link)
    write_json(folder / "config.json", {"arm": asdict(result.arm), "plan": result.plan and asdict(result.plan)})
    (folder / "command.txt").write_text(comparison.settings.command + "\n")
    write_json(folder / "environment.json", replace(where, **vars(comparison.interpreter)))
    write_json(folder / "ledger.json", {"ranks": [[asdict(entry) for entry in rank] for rank in result.ledger]})
    if result.events:
        write_json(folder / "events.json", {"events": result.events})
    write_json(folder / "summary.json", summary)


def conditions(comparison: ComparisonRun) -> Conditions:
    """What all arms of a comparison share."""
    settings, target = comparison.settings, comparison.settings.target
    warm_seconds, warm_kind = _warm_start(comparison)
    return Conditions(
        name=settings.folder.name,
        nodes=settings.nodes,
        nodes_of_target=target.nodes if target else None,
        accounting=settings.accounting,
        framing=settings.network.framing,
        bandwidth_bps=settings.rate_bps,
        delay_seconds=settings.network.longest_round_trip_us / 2e6,
        loss=max(link.loss for link in settings.network.links),
        network_links=tuple(asdict(link) for link in settings.network.links),
        preset=settings.preset_name,
        target=target.name if target else None,
        pace=target.name if target else "none",
        mode=settings.mode,
        seed=settings.seed,
        sync_every=settings.preset.sync_every,
        warm_start_seconds=warm_seconds,
        warm_start_kind=warm_kind,
        warm_start_sha256=comparison.warm.sha256,
        corpus_sha256=comparison.corpus_sha256,
        congestion_control=", ".join(comparison.links.backend.describe().get("congestion_control") or ["the host's"]),
        backend=settings.backend,
        schedule=[dict(event) for event in settings.schedule.describe()] if settings.schedule else None,
        links=comparison.links.evidence(),
    )


def _warm_start(comparison: ComparisonRun) -> tuple[float, Literal["measured", "modelled"]]:
    """Its time, charged to every arm: at the target's speed on the cluster's link, or as this machine took.

    Paced, each step is the target's compute for short contexts and a gradient all-reduce on the fast link.
    """
    settings, target = comparison.settings, comparison.settings.target
    if target is None:
        return comparison.warm.seconds, "measured"
    arm = Arm(name="warm start", exchange="local", sync="gradients", link="fast")
    plan = plan_for(arm, settings.preset, target, timed_layers=target.layers, **comparison.links.modelled(arm))
    assert plan.modelled_goodput_bps is not None
    step = target.short_step_seconds() + plan.sync_seconds(plan.modelled_goodput_bps)
    return settings.preset.warm_steps * step, "modelled"
