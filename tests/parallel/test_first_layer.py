"""The first layer's K and V made of token ids: one device's arithmetic, with 1/L of the bytes less."""

from dataclasses import replace

import pytest

from testbed.config import Preset, load_toml
from testbed.config.arms import arm_named
from testbed.errors import UsageError
from testbed.pace import plan_for
from testbed.parallel.exchanges import ids as ids_module
from testbed.targets import Target
from tests.parallel.arithmetic import BATCH, CONTEXT, Case, apart, hold_to_one_device, many_ranks, one_device


@pytest.mark.parametrize("wire", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("exchange", ["all-gather", "mask-aware", "ring"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"layout": "zigzag", "heads": "GQA", "documents": True},
        {"layout": "zigzag", "heads": "MQA", "interleave": True, "overlap": False},
        {"world": 8, "recompute": True, "documents": True},
    ],
    ids=str,
)
def test_ranks_are_one_device(exchange, wire, how):
    """Outputs and summed gradients, and bytes by the closed form, whatever else is chosen."""
    hold_to_one_device(Case(exchange=exchange, wire=wire, first_layer="ids", **how))


@pytest.mark.parametrize("exchange", ["all-gather", "ring"])
def test_of_two_layers_one_travels_and_two_bytes_a_token(exchange):
    """There; and back nothing but the second layer's."""
    whole, less = (many_ranks(Case(exchange=exchange, first_layer=each)).sent for each in ("exchanged", "ids"))
    for before, after in zip(whole, less, strict=True):
        assert after["kv_forward"] == before["kv_forward"] // 2 + 3 * 2 * BATCH * CONTEXT // 4
        assert after["kv_backward"] == before["kv_backward"] // 2


def test_what_is_made_of_other_ids_is_noticed(monkeypatch):
    """Negative control: ranks that read the ids one place late are another arithmetic by orders of magnitude."""
    real = ids_module.Ids._exchanged

    def late(self, tokens_BT):
        return [None if each is None else each.roll(1, dims=1) for each in real(self, tokens_BT)]

    monkeypatch.setattr(ids_module.Ids, "_exchanged", late)
    case = Case(wire="fp64", first_layer="ids")
    assert min(apart(many_ranks(case), one_device(case))) > 1e-3


def test_gradients_that_stop_at_what_is_made_are_noticed(monkeypatch):
    """Negative control: the embedding and the first layer learn from what others attend to."""
    real = ids_module.Ids.read

    def detached(self, decoder, tokens_BT):
        real(self, decoder, tokens_BT)
        self._made = [(key.detach(), value.detach()) for key, value in self._made]

    monkeypatch.setattr(ids_module.Ids, "read", detached)
    case = Case(wire="fp64", first_layer="ids")
    outputs, gradients = apart(many_ranks(case), one_device(case))
    assert outputs < 1e-12
    assert gradients > 1e-3


def test_it_is_named_and_refused_where_it_is_not_exact():
    """A codec, weights that differ between averagings, an exchange that sends no K and V."""
    arm = arm_named("first-layer-ids")
    assert (arm.exchange, arm.first_layer, arm.sync) == ("all-gather", "ids", "gradients")
    with pytest.raises(UsageError, match="type sync = 'gradients'"):
        replace(arm, sync="average")
    with pytest.raises(UsageError, match="leave out the codec 'int8'"):
        replace(arm, exchange="ring", codec=arm_named("int8").codec)
    for exchange in ("ulysses", "local", "ids"):
        with pytest.raises(UsageError, match=f"and the exchange is '{exchange}'"):
            replace(arm, exchange=exchange)
    preset, target = load_toml(Preset, "presets", "snapshot"), load_toml(Target, "targets", "paper-800m")
    with pytest.raises(UsageError, match="add PACE=none for arm 'first-layer-ids'"):
        plan_for(arm, preset, target, timed_layers=8)
