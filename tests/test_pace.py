"""Pace: the target's time and sizes, in closed form and on the clock."""

import time
from dataclasses import replace

import pytest
import torch

from testbed.config import Arm, CodecConfig, Preset, load_toml
from testbed.config.arms import arm_named, standard_arms
from testbed.pace import Pace, plan_for
from testbed.targets import Target
from tests.ranks import run_ranks
from tests.runs.tiny import PRESET as SMALL
from tests.trainer.small import on_ranks

pytestmark = pytest.mark.alone

PAPER = load_toml(Target, "targets", "paper-800m")
QUICK = load_toml(Preset, "presets", "quick")
ARMS = {arm.name: arm for arm in standard_arms()}


def plan(name: str, **options):
    return plan_for(ARMS[name], QUICK, PAPER, timed_layers=8, **options)


def test_the_papers_numbers():
    """134.2 MB of K and V per layer and node, 2.34 s of compute, 15 GB per step and node."""
    exact = plan("decentralised")
    assert exact.message_bytes == 134_217_728
    assert exact.compute_seconds == pytest.approx(2.344)
    assert 2 * 8 * 7 * exact.message_bytes == pytest.approx(15.0e9, rel=0.01)
    assert plan("control").message_bytes == 0


@pytest.mark.parametrize("name", ["subspace", "latent"])
def test_compressed_messages_are_at_most_3_7_percent(name):
    """Forward and backward alike: one message size serves both."""
    assert plan(name).message_bytes <= 0.037 * plan("decentralised").message_bytes


def test_step_times_at_300_megabit_per_pair():
    """The closed form of the paper's table: 62 s uncompressed, 4.2 to 4.6 s compressed."""
    goodput = 300e6 * 1448 / 1514
    seconds = {name: plan(name).compute_seconds + plan(name).exchange_seconds(goodput) for name in ARMS}
    assert 59 <= seconds["decentralised"] <= 63
    assert 4.2 <= seconds["subspace"] <= 4.6
    assert 4.2 <= seconds["latent"] <= 4.6
    assert seconds["control"] == pytest.approx(2.344)


def test_an_uncompressed_last_layer_costs_more_than_the_seven_others():
    """The paper's "every layer except the final block" takes 11.7 s a step, not 4.5."""
    arm = arm_named("subspace-final-exact")
    closed, like = plan_for(arm, QUICK, PAPER, timed_layers=8), plan("subspace")
    assert closed.last_message_bytes == 134_217_728
    assert closed.bytes_to_a_peer(8) - like.bytes_to_a_peer(8) == 2 * (134_217_728 - like.message_bytes)
    assert closed.compute_seconds + closed.exchange_seconds(300e6 * 1448 / 1514) == pytest.approx(11.7, abs=0.2)


def test_a_codec_is_charged_for_its_arithmetic():
    """At the target's own rate, which published throughput puts between a fifth and two thirds of an A100's peak."""
    assert 60e12 < PAPER.flops_per_second < 210e12
    for name in ("subspace", "latent"):
        extra = plan(name).compute_seconds - plan("control").compute_seconds
        assert 0.005 < extra < 0.2
        forward = plan(name).forward_seconds - PAPER.forward_seconds
        assert plan(name).backward_seconds - PAPER.backward_seconds == pytest.approx(2 * forward)


def test_token_ids_travel_once_and_what_is_made_of_them_is_charged():
    """Two bytes a token, before the first layer; the last rank makes K and V of seven chunks."""
    ids, whole = (plan_for(arm_named(name), QUICK, PAPER, timed_layers=8) for name in ("ids", "ids-chunk"))
    assert ids.first_bytes == whole.first_bytes == 32768
    assert ids.bytes_to_a_peer(8) == 32768
    assert ids.messages_to_a_peer(8) == 1
    assert plan("decentralised").messages_to_a_peer(8) == 16
    assert plan("control").messages_to_a_peer(8) == 0
    first = 7 * 16384 * 4 * 2048 * 2048  # K's and V's projections, a multiply and an add each
    extra = 3 * first / PAPER.flops_per_second  # there, and twice as much back
    assert ids.compute_seconds - PAPER.compute_seconds == pytest.approx(extra)
    # seven layers more of 7 chunks, each attending within itself: 27.1 TFLOP forward (experiments/nulls.md)
    more = whole.compute_seconds - ids.compute_seconds
    assert more * PAPER.flops_per_second / 3 == pytest.approx(7 * 27.1e12, rel=0.01)


TINY = replace(
    PAPER,
    nodes=2,
    layers=4,
    forward_seconds=0.02,
    backward_seconds=0.03,
    tokens_per_node=512,
    width=64,
    kv_width=64,
    subspace_ranks=(2, 4),
    latent_rank=16,
)


def paced_step(pace: Pace, work_seconds: float = 0.0) -> float:
    """A step of a two-layer model without arithmetic: exchanges at the right places; its seconds."""
    transport = pace.transport
    started = time.perf_counter()
    pace.begin()
    for direction, layers in (("forward", (0, 1)), ("backward", (1, 0))):
        for layer in layers:
            time.sleep(work_seconds)
            pace.before_exchange(direction, layer)
            if pace.plan.message_bytes:
                message = torch.zeros(8, dtype=torch.uint8)
                outgoing = [message if other != transport.rank else None for other in range(transport.world)]
                transport.exchange(
                    outgoing, {"kv": 8 * (transport.world - 1)}, ballast=pace.ballast(direction, 8)
                ).wait()
            pace.after_exchange(direction, layer)
    pace.end()
    return time.perf_counter() - started


@pytest.mark.parametrize("timed_layers", [2, 4])
def test_a_step_takes_the_targets_time_and_bytes(timed_layers):
    """Layers that the model lacks carry ballast only; every message has the target's size."""
    arm = Arm(name="exact", exchange="all-gather", codec=CodecConfig(), sync="average", link="bw")
    closed = plan_for(arm, QUICK, TINY, timed_layers=timed_layers)

    def work(transport):
        pace = Pace(closed, transport, model_layers=2)
        seconds = paced_step(pace)
        return seconds - pace.exchange_seconds, transport.sent["kv"] + transport.sent["ballast"], pace.overruns

    for seconds, sent, overruns in run_ranks(2, work):
        assert overruns == []
        assert seconds >= timed_layers * 0.05 - 1e-3
        assert sent == 2 * timed_layers * closed.message_bytes


@pytest.mark.parametrize("name", ["ids", "ids-chunk"])
def test_a_paced_trainer_sends_ids_of_the_targets_size_once(name):
    """Asserted at the sockets against the closed form; the time of that message is an exchange, and no window's."""
    small = load_toml(Preset, "presets", SMALL)
    closed = plan_for(arm_named(name), small, TINY, timed_layers=4)

    def work(trainer):
        pace = Pace(closed, trainer.transport, model_layers=small.model.layers)
        trainer.set_pace(pace)
        expected, before = trainer.payload_of_step(0), trainer.transport.sent.copy()
        trainer.step()
        sent = trainer.transport.sent - before
        return expected, dict(sent), len(pace.exchanges), pace.overruns

    for expected, sent, exchanges, overruns in on_ranks(2, arm_named(name), work, small):
        assert {key: count for key, count in expected.items() if count} == sent
        assert sent["kv_forward"] + sent["ballast"] == closed.first_bytes == 2 * TINY.tokens_per_node
        assert exchanges == 1
        assert overruns == []


def test_the_way_of_the_ids_takes_nothing_of_the_first_window():
    """It is waited for, and then the first layer's time begins anew; no window is overrun by it."""
    closed = plan_for(arm_named("ids"), QUICK, TINY, timed_layers=4)

    def work(transport):
        pace = Pace(closed, transport, model_layers=2)
        pace.begin()
        pace.first_ballast(8)
        time.sleep(2 * closed.forward_seconds)  # they are on their way
        pace.after_first()
        began = time.perf_counter()
        pace.before_exchange("forward", 0)
        return time.perf_counter() - began, pace.exchange_seconds, pace.overruns

    for window, exchange, overruns in run_ranks(2, work):
        assert window >= closed.forward_seconds - 2e-3
        assert exchange >= 2 * closed.forward_seconds
        assert overruns == []


def test_the_last_layer_may_be_larger_than_the_others():
    """Forward at the end, backward at the beginning: the step's bytes are the closed form's."""
    codec = CodecConfig(name="subspace", ranks=(2, 4), final_layer="exact")
    arm = Arm(name="final", exchange="all-gather", codec=codec, sync="average", link="bw")
    closed = plan_for(arm, QUICK, TINY, timed_layers=4)

    def work(transport):
        paced_step(Pace(closed, transport, model_layers=2))
        return transport.sent["kv"] + transport.sent["ballast"]

    assert run_ranks(2, work) == [closed.bytes_to_a_peer(4)] * 2


def test_an_overrun_window_is_noted():
    """Negative control of the pace: a host that computes longer than the target marks the step."""
    arm = Arm(name="local", exchange="local", sync="average", link="bw")

    def work(transport):
        pace = Pace(plan_for(arm, QUICK, TINY, timed_layers=4), transport, model_layers=2)
        paced_step(pace, work_seconds=0.04)
        return pace.overruns

    for overruns in run_ranks(2, work):
        assert any("forward of layer 0 took 0.04" in text for text in overruns)


def test_a_modelled_link_waits_for_bytes_and_round_trip():
    """Nothing is filled up; the rest of the time is waited."""
    arm = Arm(name="exact", exchange="all-gather", codec=CodecConfig(), sync="average", link="fast")
    closed = plan_for(arm, QUICK, TINY, timed_layers=4, modelled_goodput_bps=50e6, round_trip_seconds=0.01)

    def work(transport):
        pace = Pace(closed, transport, model_layers=2)
        paced_step(pace)
        return pace.exchange_seconds, transport.sent["ballast"]

    for seconds, ballast in run_ranks(2, work):
        assert ballast == 0
        assert seconds == pytest.approx(closed.exchange_seconds(50e6) + 8 * 0.01, rel=0.2)
