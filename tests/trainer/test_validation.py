"""What is reported of a model: which tokens are remote, and losses that do not depend on how many are in memory."""

import numpy as np
import pytest
import torch

from testbed.data.batch import Batch
from testbed.parallel.layout import Layout
from testbed.records import ValidationSums
from testbed.trainer import loop, validation
from testbed.trainer.validation import add_validation, judged, remote_context
from tests.trainer.small import arm, on_ranks


def asked(query: int, fact: int, context: int = 16) -> Batch:
    """One sequence with an answer at `query` whose evidence stands at `fact`."""
    evidence = np.full((1, context), -1)
    evidence[0, query] = fact
    zeros = np.zeros((1, context), dtype=np.int64)
    counted = np.ones((1, context), dtype=bool)
    return Batch(tokens=zeros, labels=zeros, counted=counted, evidence=evidence, documents=zeros.astype(np.int32))


@pytest.mark.parametrize(
    ("layout", "query", "fact", "remote"),
    [
        ("contiguous", 15, 0, 1),
        ("contiguous", 15, 12, 0),
        ("zigzag", 15, 0, 0),  # rank 0 holds the first chunk and the last
        ("zigzag", 15, 2, 1),
        ("zigzag", 9, 7, 0),  # the two middle chunks are rank 3's
    ],
)
def test_remote_is_what_another_node_holds(layout, query, fact, remote):
    """By owner and not by chunk: a zigzag rank has two."""
    total = ValidationSums()
    add_validation(total, torch.ones(1, 16), torch.ones(1, 16, dtype=torch.bool), asked(query, fact), Layout(layout, 4))
    assert (total.remote_tokens, total.remote_right, total.local_tokens) == (remote, remote, 1 - remote)


def test_losses_are_the_same_slice_by_slice(monkeypatch):
    """Logits of a few tokens at a time."""
    head, hidden, labels = torch.nn.Linear(8, 30), torch.randn(2, 10, 8), torch.randint(30, (2, 10))
    whole = judged(head, hidden, labels)
    monkeypatch.setattr(validation, "_SLICE", 7)
    for part, all_ in zip(judged(head, hidden, labels), whole, strict=True):
        torch.testing.assert_close(part, all_)


def test_validation_is_the_same_whatever_is_in_memory(monkeypatch):
    """A sequence at a time, as long contexts are."""

    def loss():
        return on_ranks(2, arm("best"), lambda trainer: trainer.validate().loss)

    whole = loss()
    monkeypatch.setattr(loop, "_VALIDATION_TOKENS", 1)
    assert loss() == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_remote_context_is_what_was_counted_by_hand(layout):
    """Token by token, with documents that begin anywhere."""
    layout, documents = Layout(layout, 2), np.array([[0] * 5 + [1] * 4 + [2] * 7, [0] * 16])
    holder = [layout.owner(place // (16 // (layout.per_rank * 2))) for place in range(16)]
    wanted = [
        [sum(row[j] == row[i] and holder[j] != holder[i] for j in range(i)) for i in range(16)] for row in documents
    ]
    assert remote_context(documents, layout).tolist() == wanted


def test_losses_by_remote_context_are_all_of_the_loss():
    """Four shares of every counted token; without another node, all in the first."""
    batch, loss = asked(15, 0), torch.rand(1, 16)
    for world in (1, 2):
        total = ValidationSums()
        add_validation(total, loss, torch.ones(1, 16, dtype=torch.bool), batch, Layout("contiguous", world))
        assert sum(total.context_tokens) == total.tokens == 16
        assert sum(total.context_loss) == pytest.approx(total.loss)
        assert (total.context_tokens[0] == 16) == (world == 1)
