"""Our exchanges beside other people's ring attention on the same q, k and v (`tests.parallel.peers`), over four ranks.

PyTorch's own engine with both ways to rotate, balanced and not, and the package ring-attention-pytorch.
"""

from dataclasses import replace

import pytest
import torch

from testbed.codecs import make_codec
from testbed.config.arm import LayoutName
from testbed.parallel.attention import rotary_tables, rotate, split_heads
from testbed.parallel.exchanges import make_exchange
from testbed.parallel.exchanges.base import flat_heads
from tests.parallel.arithmetic import BATCH, CONTEXT, FP32_GRADIENT, FP32_OUTPUT, Case
from tests.parallel.peers import Answer, ask_peers
from tests.ranks import run_ranks

WORLD = 4
PEERS = [
    *(f"torch {rotate}{balance}" for rotate in ("all_gather", "all_to_all") for balance in ("", " balanced")),
    "ring-attention-pytorch",
]
OURS: list[tuple[str, LayoutName, str]] = [
    (exchange, layout, heads)
    for exchange in ("all-gather", "mask-aware", "ring", "ulysses")
    for layout in ("contiguous", "zigzag")
    for heads in ("MHA", "GQA")
    if Case(exchange=exchange, heads=heads).possible
]


def given(heads: str) -> tuple[torch.Tensor, ...]:
    """q, k, v before rotation and d_out: (B, T, heads · D) of whole sequences."""
    model = Case(heads=heads).model
    generator = torch.Generator().manual_seed(11)
    widths = (model.width, model.kv_width, model.kv_width, model.width)
    return tuple(torch.randn(BATCH, CONTEXT, width, generator=generator) for width in widths)


def rotated(x_BTE: torch.Tensor, heads: str) -> torch.Tensor:
    """Heads of x, rotated to their places: what a peer is given, (B, heads, T, D)."""
    model = Case(heads=heads).model
    tables = rotary_tables(torch.arange(CONTEXT), model.head_width, model.rope_base, x_BTE)
    return rotate(split_heads(x_BTE, model.head_width), tables)


def peer_inputs() -> dict[str, tuple[torch.Tensor, ...]]:
    """What every peer is asked, by heads."""
    inputs: dict[str, tuple[torch.Tensor, ...]] = {}
    for heads in ("MHA", "GQA"):
        q, k, v, d_out = given(heads)
        width = Case(heads=heads).model.head_width
        inputs[heads] = (rotated(q, heads), rotated(k, heads), split_heads(v, width), split_heads(d_out, width))
    return inputs


@pytest.fixture(scope="module")
def peers() -> dict[str, dict[str, Answer] | str]:
    """Every peer's answers."""
    return ask_peers(peer_inputs(), WORLD)


@pytest.fixture(scope="module")
def ours() -> dict[tuple[str, LayoutName, str], Answer]:
    """Ours."""
    return {which: answer_of_ours(*which) for which in OURS}


def answer_of_ours(exchange: str, layout: LayoutName, heads: str) -> Answer:
    """out, dq, dk, dv, (B, T, heads · D) of whole sequences, before rotation."""
    case = Case(exchange=exchange, layout=layout, heads=heads, world=WORLD)
    whole = given(heads)

    def work(transport):
        model = case.model
        codec = make_codec(case.arm.codec, model.kv_width, layer=0, seed=0, kv_heads=model.kv_heads)
        one = make_exchange(case.arm, replace(model, layers=1), [codec], transport)
        here = one.layout.positions(transport.rank, CONTEXT)
        q, k, v = (tensor[:, here].clone().requires_grad_() for tensor in whole[:3])
        out = one.attend(0, q, k, v)
        return here, out.detach(), *torch.autograd.grad(out, (q, k, v), whole[3][:, here])

    answers = run_ranks(WORLD, work)
    order = torch.cat([answer[0] for answer in answers]).argsort()
    out, dq, dk, dv = (torch.cat(parts, dim=1)[:, order] for parts in list(zip(*answers, strict=True))[1:])
    return out, dq, dk, dv


def unrotated(answer: Answer, heads: str) -> Answer:
    """A peer's answer, as ours are: flat, its gradients taken through the rotation."""
    q, k = (tensor.clone().requires_grad_() for tensor in given(heads)[:2])
    out, dq, dk, dv = answer
    (dq,) = torch.autograd.grad(rotated(q, heads), q, dq)
    (dk,) = torch.autograd.grad(rotated(k, heads), k, dk)
    return flat_heads(out), dq, dk, flat_heads(dv)


def differences(ours: Answer, theirs: Answer) -> list[float]:
    """Of out, dq, dk, dv: the largest over the largest."""
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("peer", PEERS)
def test_ours_is_theirs(peer, peers, ours):
    """Every exchange and layout, MHA and GQA: outputs within 2e-6, every gradient within 5e-6."""
    answers = peers[peer]
    if isinstance(answers, str):
        pytest.skip(f"{peer} cannot be asked: {answers}")
    for (exchange, layout, heads), answer in ours.items():
        out, *gradients = differences(answer, unrotated(answers[heads], heads))
        assert out <= FP32_OUTPUT, (exchange, layout, heads)
        assert max(gradients) <= FP32_GRADIENT, (exchange, layout, heads, gradients)


def test_keys_at_other_places_are_noticed(peers, ours):
    """Negative control: gradients not taken through the rotation, and keys of other tokens, are far off."""
    for answers in peers.values():
        if not isinstance(answers, str):
            out, dq, dk, dv = answers["MHA"]
            raw = flat_heads(out), flat_heads(dq), flat_heads(dk), flat_heads(dv)
            found = differences(ours["ring", "contiguous", "MHA"], raw)
            assert found[0] <= FP32_OUTPUT
            assert min(found[1:3]) > 1e-2
            out, dq, dk, dv = (tensor.roll(1, dims=1) for tensor in unrotated(answers["MHA"], "MHA"))
            assert min(differences(ours["ring", "contiguous", "MHA"], (out, dq, dk, dv))) > 1e-2
