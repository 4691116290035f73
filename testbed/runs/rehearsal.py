"""A trainer built once with nobody at the other end, so that what cannot be trained is said before anything is."""

from collections import Counter
from typing import Any

from torch import Tensor

from testbed.config import Arm, Preset
from testbed.data.batch import Batch, Split
from testbed.errors import UsageError
from testbed.trainer import Trainer

__all__ = ["rehearse"]


def rehearse(preset: Preset, arm: Arm, nodes: int) -> None:
    """Raise `UsageError` if so many nodes cannot train this."""
    short = preset.batch * preset.task_chunks
    if short < nodes:
        raise UsageError(
            f"{nodes} nodes cannot share the {short} short sequences of a warm-start step: type nodes = {short}"
        )
    Trainer(preset, arm, _Nothing(), _Mirror(nodes), seed=0, warm=None).close()


class _Nothing:
    """A source that is never read."""

    sha256 = ""
    vocabulary = 0

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:  # noqa: ARG002
        raise AssertionError("a rehearsal reads nothing")


class _Mirror:
    """A transport on which every other rank says what this one says."""

    lanes = False

    def __init__(self, world: int) -> None:
        self.rank, self.world = 0, world
        self.sent: Counter[str] = Counter()

    def exchange(self, outgoing: list[Tensor | None], channels: dict[str, int], **_: Any) -> "_Said":  # noqa: ARG002
        return _Said(outgoing)

    def overlap(self, wanted: bool) -> None:
        pass

    def close(self) -> None:
        pass


class _Said:
    seconds = 0.0

    def __init__(self, messages: list[Tensor | None]) -> None:
        self._messages = messages

    def wait(self) -> list[Tensor | None]:
        return self._messages
