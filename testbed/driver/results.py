"""What a comparison holds of an arm while it runs; `testbed.driver.arm_record` makes its record of it."""

from dataclasses import dataclass, field

from emulation.spec.events import EventFacts
from testbed.config import Arm
from testbed.driver.combine import Step, Sync
from testbed.pace import Plan
from testbed.records import LearnedSeries, LinkKind, StepEntry, SyncEntry, Validation

__all__ = ["ArmResult", "Learned"]


@dataclass(kw_only=True)
class Learned:
    """What a trainer's steps did, whatever the link."""

    losses: list[list[list[float]]]
    """[rank][step] = [loss sum, tokens]; of as many steps as may be timed, or of all."""
    series: LearnedSeries
    """Losses of each step over all nodes' tokens, and validations."""


@dataclass(kw_only=True)
class ArmResult:
    """One arm, as measured."""

    arm: Arm
    link: LinkKind
    """shaped | unshaped | modelled."""
    plan: Plan | None
    learned: Learned | None = None
    steps: list[Step] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    """Each averaging of the weights as its own event."""
    sync_fraction: float = 1.0
    validations: list[Validation] = field(default_factory=list)
    ledger: list[tuple[StepEntry | SyncEntry, ...]] = field(default_factory=list)
    """By rank."""
    problems: list[str] = field(default_factory=list)
    events: list[EventFacts] = field(default_factory=list)
    """What a schedule did to its links, and when."""

    @property
    def sync_seconds(self) -> list[float]:
        """Of each synchronisation: the averagings, or the gradients' all-reduce of every valid step."""
        if self.arm.sync == "gradients":
            return [step.sync_seconds for step in self.steps if step.valid]
        return [sync.seconds for sync in self.syncs]
