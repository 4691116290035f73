"""The preset of `make quick`, learned: exact exchange solves it, token ids and no exchange do not."""

from dataclasses import replace

import pytest

from testbed.config import Arm, Preset, load_toml
from testbed.config.arms import arm_named
from testbed.data.source import open_source
from testbed.learn.worker import Shared, learn_cell, warm_up

SMALL = replace(load_toml(Preset, "presets", "snapshot-small"), warm_steps=300, steps=50, validation_every=50)
"""A little sooner done."""
NODES, SEED, CHANCE = 2, 10, 0.25


@pytest.mark.timeout(600)
def test_exact_exchange_solves_it_and_token_ids_do_not():
    """Chance is right in 0.25, whoever counts answers in 0.37 (six of four values)."""
    mix = Shared(open_source(SMALL.data, seed=SEED, chunks=SMALL.task_chunks, context=SMALL.context))
    warm = warm_up(SMALL, mix, seed=SEED, nodes=NODES)
    right = {}
    for name in ("decentralised", "control", "ids"):
        arm: Arm = arm_named(name)
        found = learn_cell(SMALL, arm, mix, warm, seed=SEED)
        right[name] = found.validations[-1].recall_accuracy_remote or 0.0
        assert (found.clipped or 0.0) > 0
    assert right["decentralised"] > 0.95
    assert max(right["control"], right["ids"]) < CHANCE + 0.25, right
