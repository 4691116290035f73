"""Every step to the end: what is averaged, validated and counted when."""

from dataclasses import replace

import pytest

from testbed.config import Preset, load_toml
from testbed.config.arms import arm_named
from testbed.data.recall import RecallMix
from testbed.trainer import Taken, Trainer, agree, digest, steps_of, warm_start
from tests.ranks import run_ranks
from tests.runs.tiny import PRESET
from tests.trainer.test_loop import TEXT

FIVE = replace(load_toml(Preset, "presets", PRESET), steps=5, sync_every=2, validation_every=4)


def session(name: str, wrong: int = 0) -> list[Taken]:
    """Rank 0's steps; weights are the same on both ranks at the end. `wrong`: bytes too many in the closed form."""

    def work(transport):
        mix = RecallMix(TEXT, TEXT, seed=0)
        warm = warm_start(FIVE, mix, transport, seed=0)
        trainer = Trainer(FIVE, arm_named(name), mix, transport, seed=0, warm=warm)
        right = trainer.payload_of_step
        trainer.payload_of_step = lambda index: right(index) | {"other": right(index)["other"] + wrong}
        taken = list(steps_of(trainer))
        agree(digest(trainer.parameters), transport, "weights at the end")
        return taken

    return run_ranks(2, work)[0]


def test_weights_are_averaged_when_due_and_at_the_end():
    """The end's averaging is on nobody's account."""
    taken = session("best")
    assert [each.averaged for each in taken] == [False, True, False, True, True]
    assert [bool(each.averaging_payload.get("weights")) for each in taken] == [False, True, False, True, False]
    assert [each.averaging_seconds > 0 for each in taken] == [False, True, False, True, False]
    assert [each.to_validate for each in taken] == [False, False, False, True, True]
    assert [each.last for each in taken] == [False] * 4 + [True]
    assert all(each.payload["kv_forward"] > 0 and "weights" not in each.payload for each in taken)


def test_replicas_that_sum_gradients_are_never_averaged():
    taken = session("centralised")
    assert not any(each.averaged or each.averaging_payload for each in taken)
    assert all(each.payload["weights"] > 0 for each in taken)


def test_bytes_beside_the_closed_form_end_the_session():
    """Negative control."""
    with pytest.raises(AssertionError, match="is not the closed form"):
        session("best", wrong=1)
