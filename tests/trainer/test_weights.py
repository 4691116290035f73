"""Keeping the replicas together: exact sums, coarser averages, outer momentum, and trainers without any exchange."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from testbed.config import WeightSync
from testbed.errors import RunFailed, UsageError
from testbed.trainer import agree, digest
from tests.trainer.small import TINY, arm, on_ranks, steps


def run(name: str, *, world: int = 2, count: int = 4, preset=TINY, **changes):
    """[rank] of (losses, digest of the weights, payload equals its closed form, drift)."""

    def work(trainer):
        losses, right = [], True
        for _ in range(count):
            expected = {k: v for k, v in trainer.payload_of_step(trainer.index).items() if v}
            before = Counter(trainer.transport.sent)
            losses.append(trainer.step().loss_sum)
            right &= expected == {k: v for k, v in (trainer.transport.sent - before).items() if v}
            if trainer.sync_due:
                trainer.average_weights()
        return losses, digest(trainer.parameters), right, trainer.weights.drift

    return on_ranks(world, arm(name, preset, **changes), work, preset)


def test_buckets_give_the_sum_to_the_last_bit(monkeypatch):
    """Summed early, in a thread, bucket by bucket, or after the backward pass at once."""
    monkeypatch.setattr("testbed.parallel.buckets._NUMBERS", 3000)  # several buckets in so small a model
    early, late = (
        run("centralised", world=3, preset=replace(TINY, batch=3, context=96), overlap=o) for o in (True, False)
    )
    assert [(losses, bits) for losses, bits, *_ in early] == [(losses, bits) for losses, bits, *_ in late]
    assert all(right for *_, right, _ in early)
    assert all(right for *_, right, _ in late)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_an_average_is_the_same_bits_on_every_rank(wire):
    """Rounded or not, all ranks hold the same afterwards; before it they had drifted apart."""
    (first, second) = run("control", weights=WeightSync(wire=wire))
    assert first[1] == second[1]
    assert first[3] > 0


def test_a_coarse_average_stays_near_the_exact_one():
    """int8 differences to what was agreed on: within a per cent of what a step moves; gradients likewise train."""
    exact, coarse = run("control")[0][0], run("control", weights=WeightSync(wire="int8"))[0][0]
    assert coarse[:2] == exact[:2]  # nothing averaged yet
    assert coarse == pytest.approx(exact, rel=1e-3)
    assert coarse != exact
    assert run("centralised", weights=WeightSync(wire="int8"))[0][0] == pytest.approx(
        run("centralised")[0][0], rel=1e-2
    )


def test_outer_steps_without_momentum_at_rate_one_are_averages():
    """DiLoCo's outer step degenerates to plain averaging; with momentum it goes elsewhere."""
    plain = run("control", count=6)[0][0]
    near_one = run("control", count=6, weights=WeightSync(outer_learning_rate=1.0 + 1e-12))[0][0]
    momentum = run("control", count=6, weights=WeightSync(outer_momentum=0.9, outer_learning_rate=0.7))[0][0]
    assert near_one == pytest.approx(plain, rel=1e-4)
    assert momentum[:2] == plain[:2]
    assert momentum[-1] != pytest.approx(plain[-1], rel=1e-5)


def test_averaging_attention_alone_lets_the_rest_drift():
    """Attention's projections agree, embeddings do not."""

    def work(trainer):
        steps(trainer, 2)
        named = trainer.named
        inside = digest([named["layers.0.query.weight"], named["layers.1.output.weight"]])
        return inside, digest([named["embedding.weight"]])

    (one, two) = on_ranks(2, arm("control", weights=WeightSync(scope="attention")), work)
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_a_node_of_its_own_trains_whole_sequences():
    """no-cp: every rank has other rows, whole; nothing of K and V travels, and payload is zero between averagings."""

    def work(trainer):
        batch = trainer._batch(0)
        rows, columns = trainer._share(batch)
        steps(trainer, 1)
        return batch.tokens[rows][:, columns].tolist(), dict(trainer.payload_of_step(1))

    answers = on_ranks(2, arm("no-cp"), work)
    assert [len(rows[0]) for rows, _ in answers] == [TINY.context, TINY.context]
    assert answers[0][0] != answers[1][0]
    assert all(sum(payload.values()) == 0 for _, payload in answers)


def test_no_cp_of_one_rank_is_the_plain_trainer():
    """With one rank whole sequences, contiguous chunks and no exchange are all the same."""
    assert run("no-cp", world=1)[0][0] == run("control", world=1)[0][0]


def test_a_batch_that_ranks_cannot_share_is_refused():
    """What was given, what it takes."""
    with pytest.raises(UsageError, match=r"a batch of 2 sequences cannot be shared out.* multiple of 4"):
        run("no-cp", world=4)


def test_weights_that_should_agree_and_do_not_are_noticed():
    """Negative control: one step after an averaging the replicas differ."""

    def work(trainer):
        steps(trainer, 3)
        agree(digest(trainer.parameters), trainer.transport, "weights")

    with pytest.raises(RunFailed, match="holds other weights than rank"):
        on_ranks(2, arm("control"), work)


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"recompute": True}])
def test_parts_and_recomputing_change_nothing_but_rounding(changes):
    """Gradient accumulation and activation checkpointing are about memory, not about results."""
    preset = replace(TINY, **changes)
    assert run("decentralised", preset=preset)[0][0] == pytest.approx(run("decentralised")[0][0], rel=1e-5)
    assert run("decentralised", preset=preset)[0][2]


@pytest.mark.parametrize("name", ["ring", "ulysses", "mask-aware", "best", "int8", "topk", "recent", "pca"])
@pytest.mark.parametrize("mask", [False, True], ids=["all", "documents"])
def test_every_named_arm_trains_and_counts_its_bytes(name, mask):
    """Payload of every step is its closed form, with document masks too."""
    preset = replace(TINY, document_mask=mask)
    for losses, _, right, _ in run(name, preset=preset, count=3):
        assert right
        assert torch.tensor(losses).isfinite().all()


def test_interleaved_halves_train_as_the_whole():
    """Two halves of the batch in turns."""
    assert run("decentralised", interleave=True)[0][0] == pytest.approx(run("decentralised")[0][0], rel=1e-5)
    assert run("decentralised", interleave=True)[0][2]


def test_drift_is_from_the_mean_whatever_follows_from_it():
    """Outer momentum moves what is agreed on beyond the mean; the replicas were no further apart for it."""
    plain = run("control", count=TINY.sync_every)
    outer = run("control", count=TINY.sync_every, weights=WeightSync(outer_momentum=0.9, outer_learning_rate=0.7))
    assert [drift for *_, drift in outer] == pytest.approx([drift for *_, drift in plain], rel=1e-4)
    assert outer[0][1] != plain[0][1]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("ring", {"interleave": True}, "travels within it"),
        ("ulysses", {"interleave": True}, "travels within it"),
        ("subspace", {"layout": "zigzag"}, "multiple of 4 tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_a_step(name, changes, said):
    """By the trainer itself, wherever it runs."""
    with pytest.raises(UsageError, match=said):
        run(name, count=0, preset=replace(TINY, context=24, batch=4), **changes)


def test_a_final_layer_stays_exact_over_heads_too():
    """Ulysses writes its last layer in floating point where the codec says so: more bytes, and all of them counted."""
    final = replace(arm("int8").codec, final_layer="exact")
    coarse, exact = (
        on_ranks(2, arm("ulysses", codec=codec), lambda trainer: trainer.payload_of_step(0)["kv_forward"])[0]
        for codec in (arm("int8").codec, final)
    )
    assert exact > 1.2 * coarse
    assert run("ulysses", count=1, codec=final)[0][2]
