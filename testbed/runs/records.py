"""From what ranks answer to what a table says: sums and means over ranks, keys with units."""

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from testbed.analysis.intervals import sum_interval

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

    def facts(self, arm: str, number: int, of: int) -> dict[str, Any]:
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
    """As of a step."""

    def judge(self, why: list[str], suspect: list[str]) -> None:
        """What was seen, and what its time says."""
        self.problems, self.suspect = [*self.seen_problems, *why], [*self.seen_suspect, *suspect]


def combine_syncs(answers: list[dict[str, Any]], fraction: float) -> Sync:
    """One averaging from the ranks' answers; it is over when the last rank has ended it."""
    wire = [answer["wire_tx_bytes"] for answer in answers]
    problems = [f"rank {rank}: {text}" for rank, answer in enumerate(answers) for text in answer["problems"]]
    suspect = _said(answers, "suspect")
    return Sync(
        seconds=max(answer["seconds"] for answer in answers) / fraction,
        payload_bytes=fmean(answer["payload_bytes"] for answer in answers) / fraction,
        wire_tx_bytes=None if None in wire else fmean(wire) / fraction,
        problems=problems,
        suspect=suspect,
        seen_problems=problems,
        seen_suspect=suspect,
    )


def combine_steps(answers: list[dict[str, Any]], scale: float) -> Step:
    """One step from the ranks' answers. `scale`: the target's layers / the layers timed."""
    payload = {"ballast": 0.0, "other": 0.0}
    for answer in answers:
        for channel, count in answer["payload_bytes"].items():
            payload[channel] = payload.get(channel, 0.0) + count / len(answers)
    # layers that are not timed would carry ballast only, and heads
    own = sum(count for channel, count in payload.items() if channel not in ("ballast", "other", "weights"))
    payload["ballast"] = scale * (own + payload["ballast"]) - own
    payload["other"] = scale * payload["other"]
    wire = [answer["wire_tx_bytes"] for answer in answers]
    return Step(
        step_seconds=scale * fmean(answer["step_seconds"] for answer in answers),
        compute_seconds=scale * fmean(answer["compute_seconds"] for answer in answers),
        exchange_seconds=scale * fmean(answer["exchange_seconds"] for answer in answers),
        compute_cpu_seconds=fmean(answer["compute_cpu_seconds"] for answer in answers),
        sync_seconds=fmean(answer["sync_seconds"] for answer in answers),
        loss=sum(answer["loss_sum"] for answer in answers) / max(1, sum(answer["tokens"] for answer in answers)),
        payload_bytes=payload,
        wire_tx_bytes=None if None in wire else scale * fmean(wire),
        valid=all(answer["valid"] for answer in answers),
        why=_said(answers, "why"),
        suspect=_said(answers, "suspect"),
        seen_why=_said(answers, "why"),
        seen_suspect=_said(answers, "suspect"),
        resent_bytes=fmean(answer["resent"] for answer in answers),
        queue_drops=fmean((answer["queue_drops"] or 0) + answer["relay_drops"] / len(answers) for answer in answers),
        unsure_seconds=_unsure(answers, scale),
    )


def _unsure(answers: list[dict[str, Any]], scale: float) -> float | None:
    """Means over ranks of each exchange, grouped by direction."""
    alike: dict[str, list[float]] = {}
    for each in zip(*(answer["exchanges"] for answer in answers), strict=True):
        alike.setdefault(each[0][0], []).append(fmean(seconds for _, seconds in each))
    half = sum_interval(list(alike.values()))
    return None if half is None else scale * half


def _said(answers: list[dict[str, Any]], key: str) -> list[str]:
    return [f"rank {rank}: {text}" for rank, answer in enumerate(answers) for text in answer.get(key, [])]


def combine_validations(sums: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean losses in nats per token, and the share of facts recalled, from the ranks' sums; None where the data holds
    no such token."""

    def mean(key: str, kind: str) -> float | None:
        count = sum(part[f"{kind}tokens"] for part in sums)
        return sum(part[f"{kind}{key}"] for part in sums) / count if count else None

    return {
        "step": sums[0]["step"],
        "val_loss": mean("loss", ""),
        "val_loss_text": mean("loss", "text_"),
        "val_loss_remote": mean("loss", "remote_"),
        "val_loss_local": mean("loss", "local_"),
        "val_loss_by_remote_context": [
            total / count if count else None
            for total, count in (
                (sum(part["context_loss"][i] for part in sums), sum(part["context_tokens"][i] for part in sums))
                for i in range(4)
            )
        ],
        "recall_accuracy_remote": mean("right", "remote_"),
        "recall_accuracy_local": mean("right", "local_"),
    }
