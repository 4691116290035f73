"""Every exchange is the arithmetic of one device, whatever the layout, heads, ranks, wire and order of work.

Hypothesis picks from the product of all of them; `benchmarks/correctness.py` runs all of it (docs/correctness.md).
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from testbed.codecs import Codec, make_codec, whole
from testbed.config import CodecConfig
from testbed.errors import UsageError
from testbed.model import Decoder
from testbed.parallel.exchanges import all_gather as all_gather_module
from testbed.parallel.exchanges import base as base_module
from testbed.parallel.exchanges import make_exchange
from testbed.parallel.exchanges import ring as ring_module
from testbed.parallel.exchanges.base import Alone
from tests.parallel.arithmetic import CODECS, CONTEXT, Case, apart, build, hold_to_one_device, many_ranks, one_device
from tests.ranks import run_ranks

EXCHANGES = ["all-gather", "mask-aware", "ring", "ulysses"]
cases = st.builds(
    Case,
    exchange=st.sampled_from([*EXCHANGES, "local"]),
    layout=st.sampled_from(["contiguous", "zigzag"]),
    heads=st.sampled_from(["MHA", "GQA", "MQA"]),
    world=st.sampled_from([1, 2, 3, 4, 8]),
    wire=st.sampled_from(["fp64", "fp32", "bf16"]),
    documents=st.booleans(),
    overlap=st.booleans(),
    interleave=st.booleans(),
    recompute=st.booleans(),
).filter(lambda case: case.possible)


def made(name: str) -> Codec:
    """One of CODECS, for a layer of the model here."""
    model = Case().model
    return make_codec(CODECS[name], model.kv_width, layer=0, seed=0, kv_heads=model.kv_heads)


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_ranks_are_one_device(case):
    """Invariant 1, and payload to the byte of its closed form."""
    hold_to_one_device(case)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_exchanges_are_exact_to_fp64(exchange):
    """The hardest ordinary case of each, whatever hypothesis picked: zigzag, documents, four ranks."""
    case = Case(exchange=exchange, layout="zigzag", documents=True, wire="fp64")
    assert max(apart(many_ranks(case), one_device(case))) <= 1e-12


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize(
    ("exchange", "name"),
    [
        *(("all-gather", name) for name in CODECS),
        *(("mask-aware", name) for name in CODECS if made(name).token_wise),
        *(("ring", name) for name, codec in CODECS.items() if codec.wire in ("fp32", "bf16")),
    ],
)
def test_coded_ranks_are_coded_arithmetic_in_one_process(exchange, layout, name):
    """Codecs over sockets are the codecs of the oracle, also round a ring and with two chunks a rank."""
    codec = CODECS[name]
    found = many_ranks(case := Case(exchange=exchange, layout=layout, codec=codec))
    outputs, gradients = apart(found, one_device(case, coded=True))
    # a last-bit difference now and then rounds to the wire's next number: half a code of its group
    most = {"fp32": (5e-6, 2e-5), "bf16": (1e-3, 1e-2)}.get(codec.wire or "", (5e-2, 2e-1))
    if codec.wire_backward == "fp32":  # nothing but what one code does to the sums of a receiver
        most = (5e-2, 2e-2)
    assert outputs <= most[0]
    if exchange != "ring" or codec.wire == "fp32":  # a ring rounds its sums to bf16 at every hop
        assert gradients <= most[1]
    assert found.sent == found.expected


def test_gradients_that_are_not_returned_are_noticed(monkeypatch):
    """Negative control: without the way back of dK and dV the comparison fails by orders of magnitude."""
    real = all_gather_module._Call.receive

    def deaf(self):
        messages = real(self)
        return messages if self.direction == "forward" else [m if m is None else torch.zeros_like(m) for m in messages]

    monkeypatch.setattr(all_gather_module._Call, "receive", deaf)
    case = Case(wire="fp64")
    assert apart(many_ranks(case), one_device(case))[1] > 1e-3


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_a_mask_aware_exchange_sends_only_what_is_seen(layout):
    """Short documents, hardly any bytes; and without documents what the causal order leaves."""
    everything = many_ranks(Case(layout=layout))
    causal = many_ranks(Case(exchange="mask-aware", layout=layout))
    masked = many_ranks(Case(exchange="mask-aware", layout=layout, documents=True))
    sums = [
        sum(sent["kv_forward"] for sent in step.sent if "kv_forward" in sent) for step in (everything, causal, masked)
    ]
    assert sums[0] > sums[1] > sums[2] > 0


def test_a_mask_that_is_dropped_is_noticed():
    """Negative control: with the mask on one side only the comparison fails by orders of magnitude."""
    case = Case(documents=True)
    assert max(apart(many_ranks(replace(case, documents=False)), one_device(case))) > 1e-3


def test_stale_gradients_round_the_ring_are_noticed(monkeypatch):
    """Negative control: a ring that forgets what follows a block fails the check above."""
    monkeypatch.setattr(ring_module, "_plus", lambda first, _: first)
    case = Case(exchange="ring", wire="fp64")
    assert apart(many_ranks(case), one_device(case))[1] > 1e-3


def test_recomputing_repeats_no_exchange(monkeypatch):
    """The same bytes with activations computed again as without; negative control: whole layers computed again."""
    plain = many_ranks(Case()).sent
    assert many_ranks(Case(recompute=True)).sent == plain

    def careless(decoder, tokens, exchanges):
        state = decoder.embedding(tokens[0])
        for layer in decoder.layers:
            state = checkpoint(lambda x, layer=layer: _whole(layer, x, exchanges[0]), state, use_reentrant=False)
        return [decoder.norm(state)]

    monkeypatch.setattr(Decoder, "hidden", careless)
    assert many_ranks(Case()).sent[0]["kv_forward"] == 2 * plain[0]["kv_forward"]


def _whole(layer, x, exchange):
    return layer.feed_forward(x, exchange.begin(layer.index, *layer.project(x))())


AUTOCAST = [("all-gather", name) for name in CODECS if "back" not in name]
AUTOCAST += [("ring", "latent fp32"), ("ring", "subspace"), ("mask-aware", "best"), ("ulysses", "exact")]


def attended(exchange: str, name: str, *, lower: bool) -> list[torch.Tensor]:
    """(out, dq, dk, dv and gradients of codecs) of two ranks, from the same bf16 numbers: as bf16 under autocast, as
    a GPU would have it, or as fp32."""
    case = Case(exchange=exchange, codec=CODECS[name], world=2)

    def work(transport):
        _, codecs = build(case)
        one = make_exchange(case.arm, case.model, list(codecs), transport)
        generator = torch.Generator().manual_seed(transport.rank)
        q, k, v, d_out = (torch.randn(1, 48, 64, generator=generator).bfloat16() for _ in range(4))
        leaves = [(x if lower else x.float()).requires_grad_() for x in (q, k, v)]
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            out = one.attend(0, *leaves)
        out.backward(d_out.to(out.dtype))
        trained = [p.grad for p in codecs[0].parameters() if p.grad is not None]
        return [out.detach().bfloat16(), *(grad.bfloat16() for grad in whole(tuple(x.grad for x in leaves))), *trained]

    return [tensor for answer in run_ranks(2, work) for tensor in answer]


@pytest.mark.parametrize(("exchange", "name"), AUTOCAST)
def test_autocast_reaches_no_exchange(exchange, name):
    """To the last bit: codecs, softmaxes and sums in fp32, rounded once when attention is handed back."""
    lower, full = attended(exchange, name, lower=True), attended(exchange, name, lower=False)
    assert all(torch.equal(a, b) for a, b in zip(lower, full, strict=True))


def test_autocast_would_reach_one_that_let_it(monkeypatch):
    """Negative control: without the guard what a latent is decoded to is bf16, beside the own chunk's fp32."""
    monkeypatch.setattr(base_module, "_full", lambda _: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="expected scalar type Float but found BFloat16"):
        attended("all-gather", "latent fp32", lower=True)


def test_interleaving_changes_no_bit_of_what_is_sent():
    """Two halves of the batch in turns: the same payload in twice the messages."""
    plain, turns = many_ranks(Case()).sent[0], many_ranks(Case(interleave=True)).sent[0]
    assert (plain["kv_forward"], 2 * plain["other"]) == (turns["kv_forward"], turns["other"])


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (Case(exchange="ulysses", heads="GQA"), "do not divide by 4 ranks"),
        (Case(exchange="ulysses", codec=CodecConfig(name="latent", ranks=(16,))), "takes the codec exact"),
        (Case(exchange="ulysses", codec=CodecConfig(name="int8", hadamard=True)), "leave hadamard"),
        (Case(exchange="ring", codec=CodecConfig(name="int8")), "would round at every hop"),
        (Case(exchange="mask-aware", codec=CodecConfig(name="subspace", ranks=(6, 12))), "leaves tokens out"),
    ],
)
def test_what_an_exchange_cannot_do_is_refused_in_a_sentence(case, said):
    """Heads, codecs and wires that do not suit it."""
    codecs = [make_codec(case.arm.codec, case.model.kv_width, layer=0, seed=0, kv_heads=case.model.kv_heads)]
    with pytest.raises(UsageError, match=said):
        make_exchange(case.arm, case.model, codecs, Alone(0, 4))


def test_a_sequence_that_cannot_be_cut_is_refused():
    """What was given, what is needed."""
    exchange = make_exchange(replace(Case().arm, layout="zigzag"), Case().model, [], Alone(0, 3))
    with pytest.raises(UsageError, match="64 tokens cannot be cut into the 6 equal chunks of a zigzag layout"):
        exchange.layout.check(64)


def test_zigzag_gives_every_rank_the_same_number_of_keys():
    """What it is for: contiguous gives the last of four ranks seven times the first's."""
    seen = {}
    for layout in ("contiguous", "zigzag"):
        exchange = make_exchange(replace(Case().arm, layout=layout), Case().model, [], Alone(0, 4))
        seen[layout] = [int((exchange.layout.positions(rank, CONTEXT) + 1).sum()) for rank in range(4)]
    assert len(set(seen["zigzag"])) == 1
    assert seen["contiguous"][3] > 6 * seen["contiguous"][0]


def test_partial_results_over_nothing_merge_to_nothing():
    """Both sides empty: no NaN; one side empty: the other, to the bit."""
    from testbed.parallel.attention import merge

    nothing = torch.zeros(1, 1, 2, 4), torch.full((1, 1, 2), -torch.inf)
    something = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2)
    assert torch.equal(merge(nothing, nothing)[0], nothing[0])
    assert torch.equal(merge(nothing, something)[0], something[0])
    assert torch.equal(merge(something, nothing)[0], something[0])
