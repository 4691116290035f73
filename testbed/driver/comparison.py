"""A comparison of arms: the network once, every arm on it, what came out side by side.

Composed (the default) it learns, times, composes: each trainer takes all its steps unpaced for the loss, which no
link can change; each arm is then timed on its proven link, paced and at full size, its losses held against the
learned ones to the last bit; loss against hours follows by resampling the measured times. Live and unpaced
comparisons train each arm for real on its link and compose nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from emulation.errors import EmulationError
from emulation.nodes.base import Backend
from testbed.config import Arm
from testbed.driver.budget import (
    LEAST_STEPS,
    MOST_STEPS,
    SYNC_EVENT_SECONDS,
    SYNC_EVENTS,
    is_timed_enough,
    layers_to_time,
)
from testbed.driver.combine import Step, Sync, combine_steps, combine_syncs, combine_validations
from testbed.driver.links import Links, Meanwhile
from testbed.driver.ranks import Ranks
from testbed.driver.results import ArmResult, Learned
from testbed.driver.validity import Limits, judged, resends
from testbed.errors import LossChanged, RunFailed
from testbed.formats import counted, duration
from testbed.pace import Plan, plan_for
from testbed.records import (
    Finished,
    FirstLosses,
    Interpreter,
    LearnedSeries,
    Prepared,
    RankLearned,
    RankStep,
    RankSync,
    ValidationSums,
    WarmedUp,
)
from testbed.rundir.identity import program_sha256
from testbed.rundir.progress import Reporter
from testbed.settings.emulate import Settings

__all__ = ["MOST_INVALID", "ComparisonRun"]

MOST_INVALID = 0.05
"""An arm that is trained live with a larger share of invalid steps is invalid."""
_SYNC_ATTEMPTS = 6
_SECONDS_PER_STEP_AND_NODE = 0.02
"""Of the `quick` model on two cores; for the estimate only."""


class ComparisonRun:
    """Runs the arms of `settings` on `backend`; results in `results`, by arm name."""

    def __init__(self, settings: Settings, backend: Backend, report: Reporter) -> None:
        self.settings = settings
        self.report = report
        self.links = Links(settings, backend)
        self.ranks: Ranks
        self.results: dict[str, ArmResult] = {}
        self.warm: WarmedUp
        self.corpus_sha256: str
        self.interpreter: Interpreter
        """What runs the ranks."""
        self._synced: dict[Any, ArmResult] = {}
        """Arms whose averagings have been timed, keyed by (kind of link, link, message bytes)."""

    def run(self) -> None:
        """Everything, in order; raises what makes the run worthless."""
        settings = self.settings
        self.report(self.links.preflight())
        self.report(self._estimate())
        for arm in settings.arms:
            if arm.caution:
                self.report(f"{arm.name}: {arm.caution}")
        with Ranks(self.links.backend, settings.folder / "logs") as ranks:
            self.prepare(ranks)
            self.take_all(self._learn() if settings.mode == "composed" else {})

    def prepare(self, ranks: Ranks) -> None:
        """Data and warm start on every rank."""
        self._use(ranks)
        self._doing = "data"
        data = ranks.ask(Prepared, "prepare", preset=asdict(self.settings.preset), seed=self.settings.seed)
        if {each.program_sha256 for each in data} != {program_sha256()}:
            raise RunFailed(
                "the image's sources are not this checkout's: build it again ('make image'), so that what is measured "
                "is what you read"
            )
        self.interpreter = data[0].interpreter
        self._warm_up(data[0].corpus_sha256)

    def go_on_from(self, other: "ComparisonRun") -> None:
        """The ranks of another comparison, whose data and warm start are this one's too, on links of its own."""
        self.links.backend.shape(self.links.network.unshaped())
        self._use(other.ranks)
        self.ranks.order("reconnect")
        self.warm, self.corpus_sha256, self.interpreter = other.warm, other.corpus_sha256, other.interpreter

    def _use(self, ranks: Ranks) -> None:
        self.ranks = ranks
        ranks.progress = lambda done, total: self.report(f"  {self._doing} {done}/{total}")

    def first_losses(self, arm: Arm) -> list[list[list[float]]]:
        """[rank][step] = [loss sum, tokens] of as many steps as may be timed, on links as they are."""
        self._begin(arm, None, "unpaced")
        losses = [answer.losses for answer in self.ranks.ask(FirstLosses, "first_losses", steps=2 * MOST_STEPS)]
        self.ranks.order("finish")
        return losses

    def take_all(self, learned: dict[str, Learned], of: Sequence[Arm] | None = None) -> None:
        """Every arm (or those) on its link: the cluster's first, then, once they are proven, those under test."""
        for kind in ("fast", "bw"):
            arms = [arm for arm in (self.settings.arms if of is None else of) if arm.link == kind]
            if not arms:
                continue
            if kind == "bw":
                proof = self.links.shape_and_verify("before")
                self.report(proof, link=proof.rpartition(": ")[2].partition(",")[0])
                self.ranks.order("reconnect")
            for arm in arms:
                self._take(arm, learned.get(arm.name))
        self._verify_after()

    def _warm_up(self, corpus: str) -> None:
        self._doing = "warm start: step"
        self.report("warm start, once for all arms")
        folder = str(self.settings.folder / "checkpoints")
        self.warm, self.corpus_sha256 = self.ranks.ask(WarmedUp, "warm_up", folder=folder)[0], corpus

    def _learn(self) -> dict[str, Learned]:
        learned = {}
        for arm in self.settings.arms:
            self.report(f"learn {arm.name}: {self.settings.preset.steps} steps, unpaced")
            self._doing = f"{arm.name}: step"
            self._begin(arm, None, "learned")
            answers = self.ranks.ask(RankLearned, "learn")
            validations = zip(*(answer.validations for answer in answers), strict=True)
            losses = [answer.losses for answer in answers]
            steps = zip(*losses, strict=True)
            series = LearnedSeries(
                loss=tuple(sum(loss for loss, _ in ranks) / sum(tokens for _, tokens in ranks) for ranks in steps),
                validations=tuple(combine_validations(sums) for sums in validations),
            )
            learned[arm.name] = Learned(losses=losses, series=series)
        self.ranks.order("finish")
        return learned

    def _begin(self, arm: Arm, plan: Plan | None, phase: str) -> None:
        folder = str(self.settings.folder_of(arm))
        self.ranks.order("begin", arm=asdict(arm), plan=plan and asdict(plan), folder=folder, phase=phase)

    def _take(self, arm: Arm, learned: Learned | None) -> None:
        plan = self._plan(arm)
        result = ArmResult(arm=arm, link=self.links.kind(arm, paced=plan is not None), plan=plan, learned=learned)
        self.results[arm.name] = result
        if self.settings.mode == "composed":
            self._time(result)
        else:
            self._train(result)
        result.ledger = [answer.ledger for answer in self.ranks.ask(Finished, "finish")]

    def _estimate(self) -> str:
        """How long it will take, in words: learning by experience, timed steps by closed form."""
        settings, count = self.settings, len(self.settings.arms)
        steps = settings.preset.warm_steps + count * settings.preset.steps
        learning = steps * settings.nodes * _SECONDS_PER_STEP_AND_NODE / 60
        if settings.mode == "unpaced":
            return f"about {duration(60 * learning)} of this machine's compute, and what the links add"
        if settings.live_seconds:
            most = f"at most {settings.preset.steps} steps each"
            return (
                f"about {count * settings.live_seconds / 60 + 1:.0f} min: {count} arms live, {most}, and the warm start"
            )
        timed = 0.0
        for arm in settings.arms:
            plan = self._plan(arm)
            assert plan is not None
            share = plan.timed_layers / plan.layers
            timed += LEAST_STEPS * self.links.closed_form_seconds(arm, plan) * share + 2 * SYNC_EVENT_SECONDS
        return f"about {learning + timed / 60 + 1:.0f} min: {learning:.0f} to learn, {timed / 60:.0f} of timed steps"

    # -- composed

    def _time(self, result: ArmResult) -> None:
        """Paced steps until their mean is known, each held against the learned one; then the sync event."""
        plan, learned, name = result.plan, result.learned, result.arm.name
        assert plan is not None
        assert learned is not None
        layers = f"{plan.timed_layers} of {plan.layers} layers" if plan.timed_layers < plan.layers else "all layers"
        expected = self.links.closed_form_seconds(result.arm, plan)
        self.report(f"time {name}: {layers}, about {expected * plan.timed_layers / plan.layers:.1f} s a step")
        self._begin(result.arm, plan, "timed")
        with self.links.listening(result.link) as listen:
            self._time_steps(result, plan, learned, listen)
            self._time_sync(result, listen)
        result.validations = list(learned.series.validations)

    def _time_steps(self, result: ArmResult, plan: Plan, learned: Learned, listen: Callable[[], Meanwhile]) -> None:
        name, scale, spent = result.arm.name, plan.layers / plan.timed_layers, 0.0
        while not self._enough(result, spent):
            answers = self.ranks.ask(RankStep, "step")
            index = len(result.steps)
            for rank, answer in enumerate(answers):
                was = learned.losses[rank][index][0]
                if answer.loss_sum != was:
                    raise LossChanged(
                        f"{name}, step {index}, rank {rank}: the loss on this link is {answer.loss_sum!r}, off it "
                        f"{was!r}: a network must change time and never arithmetic"
                    )
            step = combine_steps(answers, scale)
            self._listened(step, listen())
            result.steps.append(step)
            self._judge(result)
            spent += step.step_seconds / scale
            note = "" if step.valid else "  INVALID: " + step.why[0]
            self.report(
                f"  {name}: timed step {index + 1}: {step.step_seconds:.2f} s{note}",
                **step.facts(name, index + 1, self.settings.preset.steps),
            )
            if result.arm.sync == "average" and len(result.steps) % self.settings.preset.sync_every == 0:
                self._time_average(result, listen)

    @staticmethod
    def _listened(step: Step, meanwhile: Meanwhile) -> None:
        """Note what has become of the links during a step."""
        step.seen_why += meanwhile.problems
        if meanwhile.lossless:
            why, suspect = resends(step.resent_bytes, step.wire_tx_bytes)
            step.seen_why += why
            step.seen_suspect += suspect

    def _judge(self, result: ArmResult) -> None:
        """Hold every step, and every averaging, against its siblings, its closed form and its wire."""
        arm, plan, links = result.arm, result.plan, self.links
        form = links.closed_form_seconds(arm, plan) if plan else None
        converging = result.link == "shaped" and self.settings.accounting == "nic"
        limits = Limits(
            closed_form_seconds=form, converging=converging, chance=links.chancy and result.link == "shaped"
        )
        least = [links.least_seconds(arm, plan, step.wire_tx_bytes) for step in result.steps]
        seconds, sound = [step.step_seconds for step in result.steps], [not step.seen_why for step in result.steps]
        for step, verdict in zip(result.steps, judged(seconds, least, limits, sound=sound), strict=True):
            step.judge(*verdict)
        if plan is not None:
            way = self.settings.network.longest_round_trip_us / 1e6 / result.sync_fraction
            limits = replace(limits, closed_form_seconds=plan.sync_seconds(links.pair_goodput_bps(arm)) + way)
        seconds, sound = [sync.seconds for sync in result.syncs], [not sync.seen_problems for sync in result.syncs]
        for sync, verdict in zip(result.syncs, judged(seconds, [0.0] * len(seconds), limits, sound=sound), strict=True):
            sync.judge(*verdict)

    def _enough(self, result: ArmResult, spent: float) -> bool:
        valid = [step.step_seconds for step in result.steps if step.valid]
        return is_timed_enough(self.settings, len(result.steps), valid, spent)

    def _time_sync(self, result: ArmResult, listen: Callable[[], Meanwhile]) -> None:
        """The averaging's own times, of as many more events as it takes."""
        if result.arm.sync == "gradients":
            return
        plan = result.plan
        assert plan is not None
        like = (result.link, result.arm.link, plan.sync_message_bytes)
        other = self._synced.get(like)
        if self.settings.thrifty and not result.syncs and other is not None and not other.syncs[-1].problems:
            result.syncs, result.sync_fraction = list(other.syncs), other.sync_fraction
            self.report(f"  {result.arm.name}: synchronisation as measured of {other.arm.name}")
            return
        self._synced[like] = result
        while len(valid := [sync for sync in result.syncs if not sync.problems]) < SYNC_EVENTS:
            if len(result.syncs) >= _SYNC_ATTEMPTS:
                break
            self._time_average(result, listen)
        result.problems += [] if valid else result.syncs[-1].problems
        result.syncs = valid or result.syncs
        seconds = f"synchronisation {result.syncs[-1].seconds:.2f} s each"
        self.report(f"  {result.arm.name}: {seconds} (timed at {result.sync_fraction:.0%} of its size)")

    def _time_average(self, result: ArmResult, listen: Callable[[], Meanwhile]) -> None:
        """One averaging of the weights, at full size or at the fraction that fits the time."""
        plan = result.plan
        assert plan is not None
        full_seconds = plan.sync_seconds(self.links.pair_goodput_bps(result.arm))
        modelled = plan.modelled_goodput_bps is not None
        result.sync_fraction = 1.0 if modelled else min(1.0, SYNC_EVENT_SECONDS / full_seconds)
        sync = self._average(result, result.sync_fraction)
        sync.seen_problems += listen().problems
        self._judge(result)
        if sync.problems:
            self.report(f"  {result.arm.name}: synchronisation INVALID: {sync.problems[0]}")

    def _average(self, result: ArmResult, fraction: float) -> Sync:
        sync = combine_syncs(self.ranks.ask(RankSync, "average", fraction=fraction), fraction)
        result.syncs.append(sync)
        return sync

    # -- live and unpaced

    def _train(self, result: ArmResult) -> None:
        """Train for real on the link: for the given time if live, else all steps."""
        settings, name = self.settings, result.arm.name
        steps = counted(settings.live_steps or settings.preset.steps, "step")
        self.report(f"train {name}: " + (f"{settings.live_seconds:.0f} s" if settings.live_seconds else steps))
        self._begin(result.arm, result.plan, settings.mode)
        with self.links.playing(result, self.report) as watch:
            self.ranks.watch = watch
            with self.links.listening(result.link) as listen:
                self._train_steps(result, listen)
        self._judge(result)
        self.ranks.watch = self.links.backend.check_alive
        self._validate_last(result)

    def _train_steps(self, result: ArmResult, listen: Callable[[], Meanwhile]) -> None:
        settings, name = self.settings, result.arm.name
        clock, most = 0.0, settings.live_steps or settings.preset.steps
        while len(result.steps) < most:
            step = combine_steps(self.ranks.ask(RankStep, "step"), 1.0)
            self._listened(step, listen())
            clock += step.step_seconds + step.sync_seconds
            result.steps.append(step)
            if result.arm.sync == "average" and len(result.steps) % settings.preset.sync_every == 0:
                sync = self._average(result, 1.0)
                sync.seen_problems += listen().problems
                result.problems += sync.seen_problems
                clock += sync.seconds
            step.time_seconds = clock
            self._validate_if_due(result)
            if len(result.steps) % 10 == 0 or settings.mode == "live":
                self.report(
                    f"  {name}: step {len(result.steps)}, {step.step_seconds:.3f} s, loss {step.loss:.3f}",
                    **step.facts(name, len(result.steps), most),
                )
            if settings.live_seconds and clock >= settings.live_seconds:
                break

    def _validate_if_due(self, result: ArmResult) -> None:
        if len(result.steps) % self.settings.preset.validation_every == 0:
            result.validations.append(combine_validations(self.ranks.ask(ValidationSums, "validate")))

    def _validate_last(self, result: ArmResult) -> None:
        """The end is judged at equal weights: averaged once more, off the clock, if they differ."""
        if result.validations and result.validations[-1].step == len(result.steps):
            return
        if result.arm.sync == "average":
            self.ranks.order("average", fraction=0.0)
        result.validations.append(combine_validations(self.ranks.ask(ValidationSums, "validate")))

    # -- links

    def _plan(self, arm: Arm) -> Plan | None:
        target = self.settings.target
        if target is None:
            return None
        whole = plan_for(arm, self.settings.preset, target, timed_layers=target.layers, **self.links.modelled(arm))
        if self.settings.mode == "live":
            return whole
        layers = layers_to_time(self.settings, whole, self.links.closed_form_seconds(arm, whole))
        return plan_for(arm, self.settings.preset, target, timed_layers=layers, **self.links.modelled(arm))

    def _verify_after(self) -> None:
        try:
            self.report(self.links.verify_again())
        except EmulationError as error:
            for result in self.results.values():
                if result.link == "shaped":
                    result.problems.append(f"the link was not what was asked after the timed steps: {error}")
