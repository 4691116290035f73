"""Ranks as processes on loopback: what they take orders for, without a world."""

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from emulation.nodes.host import HostBackend
from emulation.spec.network import Link, star
from testbed.config import Arm, CodecConfig, Preset, SubspaceConfig, load_toml
from testbed.driver.ranks import Ranks
from testbed.records import RankLearned, RankStep
from tests.runs.tiny import PRESET

TINY = load_toml(Preset, "presets", PRESET)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Iterator[Ranks]:
    """Two, at the warm start."""
    folder = tmp_path_factory.mktemp("ranks")
    with HostBackend(star(2, Link(), "nic")) as backend, Ranks(backend, folder / "logs") as started:
        started.order("prepare", preset=asdict(TINY), seed=0)
        started.order("warm_up", folder=str(folder / "checkpoints"))
        yield started


@pytest.mark.parametrize("unplug", ["fold", "literal"])
def test_a_codec_may_be_unplugged_on_the_way(ranks, tmp_path, unplug):
    """The step at whose end it is, is balanced against what it sent; the next one sends other bytes."""
    codec = CodecConfig(name="subspace", ranks=(3, 6), subspace=SubspaceConfig(unplug=unplug, unplug_at=0.5))
    arm = asdict(Arm(name=unplug, exchange="all-gather", codec=codec, sync="average", link="bw"))
    ranks.order("begin", arm=arm, plan=None, folder=str(tmp_path / "learned"), phase="learned")
    learned = ranks.ask(RankLearned, "learn")
    ranks.order("begin", arm=arm, plan=None, folder=str(tmp_path / "trained"), phase="trained")
    steps = []
    for step in range(TINY.steps):
        steps.append(ranks.ask(RankStep, "step"))
        if step % TINY.sync_every == TINY.sync_every - 1:
            ranks.order("average", fraction=1.0)
    for rank, answer in enumerate(learned):
        assert [step[rank].loss_sum for step in steps] == [loss for loss, _ in answer.losses]
        sent = [sum(step[rank].spent.payload_bytes.values()) for step in steps]
        assert len(set(sent[:3])) == len(set(sent[3:])) == 1
        assert sent[3] > sent[0] if unplug == "literal" else sent[3] < sent[0]
    ranks.order("finish")
