"""Resuming is going on as if nothing had happened; what cannot be gone on with is refused."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from testbed.collector.metrics import MetricsFile, cut_metrics
from testbed.config import WeightSync
from testbed.config.codec import CodecConfig, SubspaceConfig
from testbed.data.integrity import file_sha256
from testbed.errors import UsageError
from testbed.trainer import Trainer, digest
from testbed.trainer.checkpoint import prune, restore, save, steps_held, steps_seen
from tests.ranks import run_ranks
from tests.trainer.small import TINY, arm, on_ranks, source, steps

ARMS = {
    "centralised": arm("centralised"),
    "subspace": arm("subspace"),
    "unplugged": arm(
        "subspace",
        codec=CodecConfig(name="subspace", ranks=(3, 6), subspace=SubspaceConfig(unplug="literal", unplug_at=0.4)),
    ),
    "best": arm("best"),
    "diloco": arm("latent", weights=WeightSync(outer_momentum=0.9, outer_learning_rate=0.7, wire="int8")),
    "no-cp": arm("no-cp"),
}
NEVER = replace(TINY, sync_every=100, validation_every=100)


def first_half(folder, chosen, at=3, total=6, preset=TINY):
    """Train to the end with a checkpoint on the way: [rank] (later losses, weights)."""

    def work(trainer):
        steps(trainer, at)
        save(trainer, folder)
        return steps(trainer, total - at), digest(trainer.parameters)

    return on_ranks(2, chosen, work, preset)


def second_half(folder, chosen, at=3, total=6, world=2, preset=TINY, seed=0):
    """Go on from the checkpoint, without a warm start."""

    def work(transport):
        trainer = Trainer(preset, chosen, source(preset), transport, seed=seed, warm=None)
        try:
            restore(trainer, folder, at)
            return steps(trainer, total - at), digest(trainer.parameters)
        finally:
            trainer.close()

    return run_ranks(world, work)


@pytest.mark.parametrize("name", ARMS)
def test_resuming_changes_no_bit(name, tmp_path):
    """Invariant 7, between two averagings: weights, codec, moments, outer momentum, what was agreed on."""
    assert first_half(tmp_path, ARMS[name]) == second_half(tmp_path, ARMS[name])


def test_a_forgotten_moment_is_noticed(tmp_path, monkeypatch):
    """Negative control: without AdamW's moments the next losses differ."""
    whole = first_half(tmp_path, ARMS["centralised"])

    def forgetful(path):
        return {name: tensor * (0 if "exp_avg" in name else 1) for name, tensor in load_file(path).items()}

    monkeypatch.setattr("testbed.trainer.checkpoint.load_file", forgetful)
    assert whole[0][0][1:] != second_half(tmp_path, ARMS["centralised"])[0][0][1:]


def test_only_the_last_two_checkpoints_stay(tmp_path):
    """And a rank can go on from what it has the whole part of."""

    def work(trainer):
        for _ in range(4):
            steps(trainer, 1)
            save(trainer, tmp_path)
            prune(tmp_path, trainer.rank, trainer.index)

    on_ranks(2, ARMS["centralised"], work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step00000003", "step00000004"]
    assert steps_held(tmp_path, 1, 2) == {(3, 2), (4, 2)}
    (tmp_path / "step00000004" / "rank1.json").unlink()  # as if killed before it was written
    assert steps_held(tmp_path, 1, 2) == {(3, 2)}
    assert steps_held(tmp_path, 0, 4) == {(3, 2)}


@pytest.mark.parametrize("guarded", [True, False])
def test_a_rank_far_ahead_leaves_a_checkpoint_that_all_have(tmp_path, guarded):
    """Ranks that exchange nothing drift apart in time. Negative control: without regard to the others none is left."""

    def work(trainer):
        for _ in range(5 if trainer.rank == 0 else 1):
            steps(trainer, 1)
            save(trainer, tmp_path)
            prune(tmp_path, trainer.rank, 1 if guarded else trainer.index)

    on_ranks(2, arm("control", preset=NEVER), work, NEVER)
    common = steps_held(tmp_path, 0, 2) & steps_held(tmp_path, 1, 2)
    assert common == ({(1, 2)} if guarded else set())


def test_a_checkpoint_keeps_the_clock(tmp_path):
    """What the steps before it took."""

    def work(trainer):
        steps(trainer, 1)
        save(trainer, tmp_path, clock=12.5)
        return restore(trainer, tmp_path, 1)

    assert on_ranks(1, ARMS["centralised"], work) == [12.5]


@pytest.mark.parametrize("cut", [True, False])
def test_metrics_go_on_as_one_run(tmp_path, cut):
    """Three steps, a line that broke off, and on from step 2. Negative control: uncut, lines stand there twice."""

    def write(*steps):
        metrics = MetricsFile(tmp_path, 0)
        for step in steps:
            metrics.write({"step": step})
        metrics.close()

    path = tmp_path / "metrics/rank0.jsonl"
    write(1, 2, 2, 3)  # a validation has the number of its step
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    if cut:
        cut_metrics(tmp_path, 0, 2)
        assert [*path.parent.iterdir()] == [path]
    write(3, 4)
    once = '{"step": 1}\n{"step": 2}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n'
    assert (path.read_text() == once) == cut
    cut_metrics(tmp_path, 1, 2)  # a rank that had none


def test_another_number_of_ranks_can_go_on_where_all_hold_the_same(tmp_path):
    """Summed gradients: 2 ranks' checkpoint over 1 and 4 ranks, the same losses up to rounding."""

    def summed(answers):
        return [sum(each) for each in zip(*(losses for losses, _ in answers), strict=True)]

    whole = summed(first_half(tmp_path, ARMS["centralised"]))
    for world in (1, 4):
        assert summed(second_half(tmp_path, ARMS["centralised"], world=world)) == pytest.approx(whole, rel=2e-3)


def test_another_text_under_the_same_name_is_refused(tmp_path, monkeypatch):
    """As another Python's standard library is: the configuration is the same, the text's hash is not."""
    first_half(tmp_path, ARMS["subspace"], total=3)
    real, known = source, source(TINY).sha256

    def another(preset):
        mix = copy.copy(real(preset))  # the one of all tests
        mix.sha256 = known[::-1]
        return mix

    monkeypatch.setitem(second_half.__globals__, "source", another)
    with pytest.raises(UsageError, match=f"another data: '{known}' there, '{known[::-1]}' here"):
        second_half(tmp_path, ARMS["subspace"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"world": 1}, "is of 2 ranks.*start 2 ranks, not 1"),
        ({"seed": 1}, "another seed: 0 there, 1 here"),
        ({"preset": replace(TINY, learning_rate=1e-4)}, "another preset: learning_rate 0.003 there, 0.0001 here"),
        ({"preset": replace(TINY, model=replace(TINY.model, ffn=64))}, "another preset: model.ffn 48 there, 64 here"),
        ({"chosen": arm("control")}, "another arm: name 'subspace' there, 'control' here"),
        ({"damage": "json"}, "rank0.json is damaged"),
        ({"damage": "safetensors"}, "rank0.safetensors is not what its description was written for"),
    ],
)
def test_what_is_of_something_else_is_refused_in_a_sentence(tmp_path, changes, said):
    """What is there, what was asked."""
    first_half(tmp_path, ARMS["subspace"], total=3)
    damage = changes.pop("damage", None)
    if damage:
        (tmp_path / "step00000003" / f"rank0.{damage}").write_bytes(b"{")
    with pytest.raises(UsageError, match=said) as refusal:
        second_half(tmp_path, **{"chosen": ARMS["subspace"], "world": 1 if damage == "json" else 2, **changes})
    assert "\n" not in str(refusal.value)


def forged(place, change):
    """Rank 0's tensors changed, with a description that fits."""
    tensors = load_file(place / "rank0.safetensors")
    change(tensors)
    save_file(tensors, place / "rank0.safetensors")
    description = json.loads((place / "rank0.json").read_text())
    sha256 = file_sha256(place / "rank0.safetensors")
    (place / "rank0.json").write_text(json.dumps(description | {"sha256": sha256}))


WEIGHT = "model.layers.0.query.weight"


def one_number(place):
    forged(place, lambda tensors: tensors.update({WEIGHT: torch.ones(1)}))


def another_type(place):
    forged(place, lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].double()}))


def turned(place):
    forged(place, lambda tensors: tensors.update({"model.head.weight": tensors["model.head.weight"].T.contiguous()}))


def of_another_step(place):
    shutil.copy(place.with_name("step00000005") / "rank0.safetensors", place)


def all_of_another_step(place):
    for name in ("rank0.safetensors", "rank0.json"):
        shutil.copy(place.with_name("step00000005") / name, place)


def of_another_rank(place):
    for ending in ("safetensors", "json"):
        shutil.copy(place / f"rank1.{ending}", place / f"rank0.{ending}")


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (one_number, rf"'{WEIGHT}' is \(1,\) float32 there, \(32, 32\) float32 here"),
        (another_type, rf"'{WEIGHT}' is \(32, 32\) float64 there, \(32, 32\) float32 here"),
        (turned, r"'model.head.weight' is \(32, \d+\) float32 there"),
        (of_another_step, "rank0.safetensors is not what its description was written for"),
        (all_of_another_step, "rank0.json is of step 5, not of step 3"),
        (of_another_rank, "rank0.json is of rank 1, not of rank 0"),
    ],
)
def test_what_is_not_what_it_says_is_refused(tmp_path, tamper, said):
    """Though every name fits, and every file can be read; untouched it goes on."""

    def work(trainer):
        for at in (3, 2):
            steps(trainer, at)
            save(trainer, tmp_path)

    on_ranks(2, ARMS["centralised"], work)
    second_half(tmp_path, ARMS["centralised"])
    tamper(tmp_path / "step00000003")
    with pytest.raises(UsageError, match=said):
        second_half(tmp_path, ARMS["centralised"])


def test_a_copy_beside_the_checkpoints_is_the_users(tmp_path):
    """It is no step, neither when training goes on nor when old ones are taken away."""
    (tmp_path / "step00000003.bak").mkdir(parents=True)
    (tmp_path / "step00000003.bak" / "rank0.json").write_text("{}")
    assert steps_seen(tmp_path) == []
    prune(tmp_path, 0, 9)
    assert (tmp_path / "step00000003.bak" / "rank0.json").is_file()
