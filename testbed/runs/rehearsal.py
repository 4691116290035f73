"""A trainer built once with nobody at the other end, so that what cannot be trained is said before anything is."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from testbed.codecs import Shape, at_scale, make_codec
from testbed.config import Arm, Preset
from testbed.data.batch import Batch, Split
from testbed.errors import UsageError
from testbed.pace import plan_for
from testbed.runs.settings import Settings
from testbed.trainer import Trainer

__all__ = ["rehearse", "rehearse_pace"]


def rehearse(preset: Preset, arm: Arm, nodes: int) -> None:
    """Raise `UsageError` if so many nodes cannot train this."""
    short = preset.batch * preset.task_chunks
    if short < nodes:
        raise UsageError(
            f"{nodes} nodes cannot share the {short} short sequences of a warm-start step: type nodes = {short}"
        )
    Trainer(preset, arm, _Nothing(), _Mirror(nodes), seed=0, warm=None).close()


def rehearse_pace(settings: Settings, arms: Iterable[Arm]) -> None:
    """Raise `UsageError` if a paced run cannot know what these arms send at its target; nothing without a target."""
    preset, target = settings.preset, settings.target
    if target is None:
        return
    for arm in arms:
        plan = plan_for(arm, preset, target, timed_layers=target.layers)
        if arm.exchange == "local":
            continue
        with torch.device("meta"):
            codec = make_codec(
                at_scale(arm.codec, preset), preset.kv_width, layer=0, seed=0, kv_heads=preset.model.kv_heads
            )
        shape = Shape(batch=preset.batch, tokens=preset.context // settings.nodes)
        for direction in ("forward", "backward"):
            own = sum(codec.payload(shape, direction).values())
            if own > plan.bytes_of(direction):
                raise UsageError(
                    f"arm '{arm.name}': the small model sends {own} bytes a message, more than {target.name}'s "
                    f"{plan.bytes_of(direction)}, up to which a paced run fills it: type PACE=none"
                )


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
