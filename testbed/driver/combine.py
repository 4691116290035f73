"""From what ranks answer to one step, synchronisation or validation of all: sums and means over ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from testbed.intervals import sum_interval
from testbed.records import RankStep, RankSync, Spent, StepRecord, Validation, ValidationSums
from testbed.records.progress import Facts

__all__ = ["Step", "Sync", "combine_steps", "combine_syncs", "combine_validations"]


@dataclass(kw_only=True)
class Step:
    """One step over all ranks. Times are means over ranks, scaled to all of the target's layers."""

    step_seconds: float
    compute_seconds: float
    exchange_seconds: float
    compute_cpu_seconds: float
    sync_seconds: float
    loss: float
    payload_bytes: dict[str, float]
    """By channel, a node's mean."""
    wire_tx_bytes: float | None
    valid: bool
    why: list[str] = field(default_factory=list)
    """What makes it invalid."""
    suspect: list[str] = field(default_factory=list)
    """What may have prolonged it."""
    seen_why: list[str] = field(default_factory=list)
    seen_suspect: list[str] = field(default_factory=list)
    """Of both, what was seen during the step: the rest depends on its siblings, of which some come later."""
    resent_bytes: float = 0.0
    queue_drops: float = 0.0
    """A node's means."""
    time_seconds: float | None = None
    """Since the first step, where steps are trained one after the other."""
    unsure_seconds: float | None = None
    """Half of the 95 % interval of `step_seconds` that its own exchanges give, of which a step has several alike."""

    def judge(self, why: list[str], suspect: list[str]) -> None:
        """What was seen, and what its time says."""
        self.why, self.suspect = [*self.seen_why, *why], [*self.seen_suspect, *suspect]
        self.valid = not self.why

    def record(self, number: int) -> StepRecord:
        """Without what its verdict was made of."""
        return StepRecord(
            step=number,
            step_seconds=self.step_seconds,
            compute_seconds=self.compute_seconds,
            exchange_seconds=self.exchange_seconds,
            compute_cpu_seconds=self.compute_cpu_seconds,
            sync_seconds=self.sync_seconds,
            loss=self.loss,
            payload_bytes=self.payload_bytes,
            wire_tx_bytes=self.wire_tx_bytes,
            valid=self.valid,
            why=tuple(self.why),
            suspect=tuple(self.suspect),
            resent_bytes=self.resent_bytes,
            queue_drops=self.queue_drops,
            time_seconds=self.time_seconds,
            unsure_seconds=self.unsure_seconds,
        )

    def facts(self, arm: str, number: int, of: int) -> Facts:
        """For who looks on: which step of how many."""
        return {
            "arm": arm,
            "step": number,
            "of": of,
            "loss": self.loss,
            "step_seconds": self.step_seconds,
            "wire_mb": None if self.wire_tx_bytes is None else self.wire_tx_bytes / 1e6,
        }


@dataclass(kw_only=True)
class Sync:
    """One averaging of the weights, scaled to full size; bytes are a node's mean."""

    seconds: float
    payload_bytes: float
    wire_tx_bytes: float | None
    problems: list[str] = field(default_factory=list)
    """What makes it invalid."""
    suspect: list[str] = field(default_factory=list)
    seen_problems: list[str] = field(default_factory=list)
    seen_suspect: list[str] = field(default_factory=list)
    """What was seen during the averaging; `judge` adds what its time says."""

    def judge(self, why: list[str], suspect: list[str]) -> None:
        """What was seen, and what its time says."""
        self.problems, self.suspect = [*self.seen_problems, *why], [*self.seen_suspect, *suspect]


def combine_syncs(answers: Sequence[RankSync], fraction: float) -> Sync:
    """One averaging from the ranks' answers; it is over when the last rank has ended it."""
    spent = [answer.spent for answer in answers]
    problems, suspect = _said(spent, "problems"), _said(spent, "suspect")
    wire = _mean_wire(spent)
    return Sync(
        seconds=max(answer.seconds for answer in answers) / fraction,
        payload_bytes=fmean(sum(each.payload_bytes.values()) for each in spent) / fraction,
        wire_tx_bytes=None if wire is None else wire / fraction,
        problems=problems,
        suspect=suspect,
        seen_problems=list(problems),
        seen_suspect=list(suspect),
    )


def combine_steps(answers: Sequence[RankStep], scale: float) -> Step:
    """One step from the ranks' answers. `scale`: the target's layers / the layers timed."""
    spent = [answer.spent for answer in answers]
    payload = {"ballast": 0.0, "other": 0.0}
    for each in spent:
        for channel, count in each.payload_bytes.items():
            payload[channel] = payload.get(channel, 0.0) + count / len(answers)
    # layers that are not timed would carry ballast only, and heads
    own = sum(count for channel, count in payload.items() if channel not in ("ballast", "other", "weights"))
    payload["ballast"] = scale * (own + payload["ballast"]) - own
    payload["other"] = scale * payload["other"]
    wire, why, suspect = _mean_wire(spent), _said(spent, "problems"), _said(spent, "suspect")
    return Step(
        step_seconds=scale * fmean(answer.step_seconds for answer in answers),
        compute_seconds=scale * fmean(answer.compute_seconds for answer in answers),
        exchange_seconds=scale * fmean(answer.exchange_seconds for answer in answers),
        compute_cpu_seconds=fmean(answer.compute_cpu_seconds for answer in answers),
        sync_seconds=fmean(answer.sync_seconds for answer in answers),
        loss=sum(answer.loss_sum for answer in answers) / max(1, sum(answer.tokens for answer in answers)),
        payload_bytes=payload,
        wire_tx_bytes=None if wire is None else scale * wire,
        valid=not why,
        why=why,
        suspect=suspect,
        seen_why=list(why),
        seen_suspect=list(suspect),
        resent_bytes=scale * fmean(each.resent for each in spent),  # as the wire, to which it is a share
        # of the delay line every rank counts the same: what all nodes lost there
        queue_drops=fmean((each.queue_drops or 0) + each.relay_drops / len(spent) for each in spent),
        unsure_seconds=_unsure(answers, scale),
    )


def _unsure(answers: Sequence[RankStep], scale: float) -> float | None:
    """Means over ranks of each exchange, grouped by direction."""
    alike: dict[str, list[float]] = {}
    for each in zip(*(answer.exchanges for answer in answers), strict=True):
        alike.setdefault(each[0][0], []).append(fmean(seconds for _, seconds in each))
    half = sum_interval(list(alike.values()))
    return None if half is None else scale * half


def _mean_wire(spent: Sequence[Spent]) -> float | None:
    """Bytes sent on the wire, a node's mean; None where one is not counted."""
    known = [each.wire_tx_bytes for each in spent if each.wire_tx_bytes is not None]
    return fmean(known) if len(known) == len(spent) else None


def _said(spent: Sequence[Spent], key: str) -> list[str]:
    return [f"rank {rank}: {text}" for rank, each in enumerate(spent) for text in getattr(each, key)]


def combine_validations(sums: Sequence[ValidationSums]) -> Validation:
    """Mean losses in nats per token, and the share of facts recalled, from the ranks' sums; None where the data holds
    no such token."""

    def mean(key: str, kind: str) -> float | None:
        count = sum(getattr(part, f"{kind}tokens") for part in sums)
        return sum(getattr(part, f"{kind}{key}") for part in sums) / count if count else None

    context = zip(*(zip(part.context_loss, part.context_tokens, strict=True) for part in sums), strict=True)
    by_context = [(sum(loss for loss, _ in each), sum(count for _, count in each)) for each in context]
    return Validation(
        step=sums[0].step,
        val_loss=mean("loss", ""),
        val_loss_text=mean("loss", "text_"),
        val_loss_remote=mean("loss", "remote_"),
        val_loss_local=mean("loss", "local_"),
        val_loss_by_remote_context=tuple(total / count if count else None for total, count in by_context),
        recall_accuracy_remote=mean("right", "remote_"),
        recall_accuracy_local=mean("right", "local_"),
    )
