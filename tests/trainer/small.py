"""A trainer of seconds on ranks that are threads, for the tests of this folder."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from testbed.config import Arm, Preset, load_toml
from testbed.config.arms import arm_named
from testbed.data.source import Source, open_source
from testbed.learn.worker import Shared
from testbed.trainer import Trainer, WarmStart, warm_start
from tests.ranks import run_ranks
from tests.runs.tiny import PRESET

TINY = load_toml(Preset, "presets", PRESET)


@functools.cache
def source(preset: Preset) -> Source:
    """The same for all ranks and tests: its text is read once."""
    return Shared(open_source(preset.data, seed=0, chunks=preset.task_chunks, context=preset.context))


def arm(name: str, preset: Preset = TINY, **changes: Any) -> Arm:
    return replace(arm_named(name), **changes)


def on_ranks(world: int, chosen: Arm, work: Callable[[Trainer], Any], preset: Preset = TINY) -> list[Any]:
    """`work` with a freshly warm-started trainer on every rank; the answers by rank."""

    def one(transport: Any) -> Any:
        mix = source(preset)
        warm: WarmStart = warm_start(preset, mix, transport, seed=0)
        trainer = Trainer(preset, chosen, mix, transport, seed=0, warm=warm)
        try:
            return work(trainer)
        finally:
            trainer.close()

    return run_ranks(world, one)


def steps(trainer: Trainer, count: int) -> list[float]:
    """Loss sums of so many steps, with the averagings that are due."""
    found = []
    for _ in range(count):
        found.append(trainer.step().loss_sum)
        if trainer.sync_due:
            trainer.average_weights()
    return found
