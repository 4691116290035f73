"""The loop: resuming from the warm start, equal weights, and speed of light steps on real ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from testbed.config import Preset, load_toml
from testbed.config.arms import standard_arms
from testbed.data.recall import RecallMix
from testbed.errors import RunFailed, UsageError
from testbed.trainer import Trainer, agree, digest, learning_rate, warm_start
from tests.ranks import run_ranks
from tests.runs.tiny import PRESET

TINY = load_toml(Preset, "presets", PRESET)
ARMS = {arm.name: arm for arm in standard_arms()}
TEXT = np.frombuffer(bytes(range(32, 127)) * 50, dtype=np.uint8)


def losses(name: str, world: int, steps: int = 4, **changes) -> list[list[float]]:
    """[rank][step] loss sums of an arm; all ranks are checked to hold the same weights at the end."""
    preset = replace(TINY, **changes)

    def work(transport):
        mix = RecallMix(TEXT, TEXT, seed=0)
        warm = warm_start(preset, mix, transport, seed=0)
        trainer = Trainer(preset, ARMS[name], mix, transport, seed=0, warm=warm)
        found = []
        for _ in range(steps):
            found.append(trainer.step().loss_sum)
            if trainer.sync_due:
                trainer.average_weights()
        agree(digest(trainer.parameters), transport, "weights after averaging")
        return found

    return run_ranks(world, work)


@pytest.mark.parametrize("name", ARMS)
def test_a_run_repeats_to_the_last_bit(name):
    """Same seed, same losses; after an averaging all ranks hold the same weights."""
    assert losses(name, 2) == losses(name, 2)


def test_weights_differ_between_two_averagings():
    """Negative control: one step after an averaging the check that all ranks agree fails."""
    with pytest.raises(RunFailed, match="weights after averaging"):
        losses("latent", 2, steps=3)


def test_centralised_losses_do_not_depend_on_the_number_of_ranks():
    """Exact exchange and gradients all-reduced: 1, 2 and 4 ranks train the same model (bf16 on the wire)."""
    totals = [np.array(losses("centralised", world)).sum(0) for world in (1, 2, 4)]
    for total in totals[1:]:
        assert total == pytest.approx(totals[0], rel=2e-3)


class Asked:
    """A source that notes which batches were asked for."""

    def __init__(self, source):
        self.source, self.sha256, self.vocabulary, self.found = source, source.sha256, source.vocabulary, []

    def batch(self, split, step, sequences, context):
        self.found.append((step, sequences, context))
        return self.source.batch(split, step, sequences, context)


def test_the_contexts_of_a_warm_start_grow():
    """Equal shares of the steps, as many tokens in each; activations are recorded on the longest contexts."""
    preset = replace(TINY, context=64, batch=4, warm_steps=6, warm_contexts=(16, 32, 32))

    def work(transport):
        asked = Asked(RecallMix(TEXT, TEXT, seed=0))
        warm = warm_start(preset, asked, transport, seed=0)
        return asked.found, [len(each) for each in warm.activations]

    found, recorded = run_ranks(1, work)[0]
    assert found[:6] == [(0, 16, 16), (1, 16, 16), *((step, 8, 32) for step in range(2, 6))]
    assert {(sequences, context) for _, sequences, context in found[6:]} == {(8, 32)}
    assert recorded == [8 * 8 * 32] * preset.model.layers
    assert replace(preset, warm_contexts=()).short_contexts == (64 // TINY.task_chunks,)


@pytest.mark.parametrize("wrong", [(48,), (0,), (-32,), (128,), (32,) * 7])
def test_contexts_of_a_warm_start_divide_the_context(wrong):
    with pytest.raises(UsageError, match=r"warm_contexts = \[.*each must divide context = 64.*warm_steps = 6"):
        replace(TINY, context=64, batch=4, warm_steps=6, warm_contexts=wrong)


def test_disagreeing_ranks_are_stopped():
    """Negative control of the hash check."""

    def work(transport):
        agree(bytes([transport.rank]) * 32, transport, "weights")

    with pytest.raises(RunFailed, match="holds other weights than rank"):
        run_ranks(2, work)


def test_the_learning_rate_rises_and_falls_over_warm_start_and_steps():
    """Linear up, linear down to the floor."""
    preset = load_toml(Preset, "presets", "quick")
    rates = [learning_rate(preset, step) for step in range(preset.warm_steps + preset.steps)]
    peak = rates.index(max(rates))
    assert peak == pytest.approx(preset.learning_rate_warmup, abs=1)
    assert rates[-1] == pytest.approx(preset.learning_rate * preset.learning_rate_floor, rel=0.05)
    assert all(torch.tensor(rates[:peak]).diff() > 0)
    assert all(torch.tensor(rates[peak:]).diff() <= 0)
