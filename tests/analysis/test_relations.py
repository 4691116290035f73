"""Relations between arms, and when a comparison shows nothing."""

import math
from dataclasses import replace
from typing import Any

import pytest

from testbed.analysis.comparison.baselines import relate, void_reason, with_nats
from testbed.formats import nats_above
from testbed.records import ArmRecord
from tests.analysis.synthetic import made_up


def _arms(**changes: dict[str, Any]) -> dict[str, ArmRecord]:
    """By name; `changes`: fields by arm."""
    return {arm.arm: replace(arm, **changes.get(arm.arm, {})) for arm in made_up()[0].arms}


def test_relations_are_those_of_the_definitions() -> None:
    """Ratios, relative differences and the recovered fraction, by hand."""
    arms = {arm.arm: arm for arm in relate(list(_arms().values()))}
    assert arms["decentralised"].step_time_vs_centralised == pytest.approx(62 / 2.6)
    assert arms["latent"].kv_bytes_vs_decentralised == pytest.approx(0.2262 / 6.44)
    assert arms["subspace"].val_loss_vs_decentralised == pytest.approx(2.25 / 1.83 - 1)
    assert arms["control"].recovered_fraction == 0
    assert arms["decentralised"].recovered_fraction == 1
    assert arms["centralised"].wire_bytes_vs_decentralised is None


@pytest.mark.parametrize("gone", ["centralised", "decentralised", "control"])
def test_a_missing_partner_gives_null(gone: str) -> None:
    """No partner, no relation; and no exception."""
    arms = [arm for name, arm in _arms().items() if name != gone]
    latent = next(arm for arm in relate(arms) if arm.arm == "latent")
    keys = {"centralised": "val_loss_vs_centralised", "decentralised": "val_loss_vs_decentralised"}
    assert getattr(latent, keys.get(gone, "recovered_fraction")) is None


def test_nulls_give_nulls() -> None:
    """An arm whose losses are not known, or are none, relates to nothing by them, and spoils no other arm."""
    for loss in (None, math.nan, math.inf):
        arms = _arms(latent={"final_val_loss": loss, "val_loss_remote": loss})
        related = {arm.arm: arm for arm in relate(list(arms.values()))}
        latent = related["latent"]
        assert latent.val_loss_vs_decentralised is latent.val_loss_above_centralised is None
        assert latent.recovered_fraction is None
        assert latent.step_time_vs_centralised is not None
        assert related["subspace"].recovered_fraction is not None


def test_losses_are_compared_at_equal_steps_only() -> None:
    """An arm that trained longer is not called better for it; its step time still compares."""
    arms = _arms(latent={"learned_steps": 300})
    latent = next(arm for arm in relate(list(arms.values())) if arm.arm == "latent")
    assert latent.val_loss_vs_decentralised is None
    assert latent.recovered_fraction is None
    assert latent.step_time_vs_centralised is not None


@pytest.mark.parametrize(
    ("nats", "said"), [(0.0123, "+0.012"), (-0.5, "−0.500"), (-0.0004, "0.000"), (0.0, "0.000"), (None, "–")]
)
def test_nats_have_a_sign_where_they_are_not_nothing(nats: float | None, said: str) -> None:
    assert nats_above(nats) == said


def test_losses_are_given_in_nats_too() -> None:
    """Where exact's loss is nearly nothing, a share of it says nothing."""
    losses: dict[str, Any] = {"decentralised": {"final_val_loss": 0.001}, "latent": {"final_val_loss": 0.021}}
    for relating in (relate, with_nats):
        found = {arm.arm: arm.val_loss_above_decentralised for arm in relating(list(_arms(**losses).values()))}
        assert found["latent"] == pytest.approx(0.02)
        assert found["decentralised"] == 0
        longer = losses | {"latent": losses["latent"] | {"learned_steps": 300}}
        found = {arm.arm: arm.val_loss_above_decentralised for arm in relating(list(_arms(**longer).values()))}
        assert found["latent"] is None


@pytest.mark.parametrize(
    ("guessed", "recall", "void"), [(0.125, 0.19, False), (0.125, 0.21, True), (0.25, 0.30, False), (0.25, 0.34, True)]
)
def test_what_control_may_know_depends_on_what_guessing_gives(guessed: float, recall: float, void: bool) -> None:
    arms = _arms(control={"recall_accuracy_remote": recall})
    assert (void_reason(list(arms.values()), guessed) is not None) == void
    related = {arm.arm: arm for arm in relate(list(arms.values()), guessed)}
    assert (related["latent"].recovered_fraction is None) == void


def test_of_a_void_comparison_nothing_is_recovered() -> None:
    """Losses 0.2 % apart: the share would be any number, such as 363."""
    exact = _arms()["decentralised"]
    near = {key: getattr(exact, key) * 1.002 for key in ("final_val_loss", "val_loss_remote")}
    arms = _arms(control=near)
    related = {arm.arm: arm for arm in relate(list(arms.values()))}
    assert void_reason(list(arms.values())) is not None
    assert {arm.recovered_fraction for arm in related.values()} == {None}
    assert related["latent"].val_loss_vs_decentralised is not None


def test_a_telling_comparison_is_not_void() -> None:
    """Control 11 % above exact, recall at chance: something can be shown."""
    assert void_reason(list(_arms().values())) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"final_val_loss": 1.9}, "validation loss"),
        ({"recall_accuracy_remote": 0.5}, "50% of the remote recall"),
    ],
)
def test_void_when_control_does_as_well(changed: dict, said: str) -> None:
    """Negative control: a task that needs no exchange is called void, with the reason."""
    reason = void_reason(list(_arms(control=changed).values()))
    assert reason is not None
    assert said in reason
    assert "shows nothing about exchange" in reason


def test_unequal_live_steps_are_not_compared_by_loss() -> None:
    """LIVE=2min: the control took 50 steps and the exact exchange 2; neither is better for that."""
    steps = dict(zip(_arms(), (47, 2, 27, 27, 50), strict=True))
    arms = list(_arms(**{name: {"steps": count, "learned_steps": None} for name, count in steps.items()}).values())
    related = {arm.arm: arm for arm in relate(arms)}
    assert related["control"].val_loss_vs_decentralised is None
    assert related["latent"].recovered_fraction is None
    assert void_reason(arms) is None
