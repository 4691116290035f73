"""The null that sends token ids: what receivers make of them is what one process makes, and no more than that."""

import pytest
import torch

from testbed.config import Arm, Model
from testbed.config.arm import IdsConfig
from testbed.config.arms import arm_named
from testbed.errors import UsageError
from testbed.model import Decoder
from testbed.parallel.exchanges import InProcess, make_exchange
from testbed.parallel.exchanges.ids import made_flops
from tests.parallel.arithmetic import BATCH, CONTEXT, Case, apart, many_ranks, one_device, tokens

FP64 = 1e-12


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize("heads", ["MHA", "GQA"])
@pytest.mark.parametrize(
    "ids", [IdsConfig(), IdsConfig(layers=2, window=3), IdsConfig(layers=0, window="chunk")], ids=str
)
def test_ranks_are_the_same_arithmetic_in_one_process(layout, heads, ids):
    """Outputs and gradients, documents too; two bytes a token to each peer, once a step, and nothing back."""
    for documents in (False, True):
        case = Case(layout=layout, heads=heads, wire="fp64", ids=ids, documents=documents)
        found = many_ranks(case)
        assert max(apart(found, one_device(case))) <= FP64
        assert found.sent == found.expected
        assert [sent["kv_forward"] for sent in found.sent] == 4 * [3 * 2 * BATCH * CONTEXT // 4]
        assert not any("kv_backward" in sent for sent in found.sent)


def test_a_window_too_short_is_another_arithmetic():
    """The negative control: windows differ in what they give, so equality above says something."""
    one, other = (one_device(Case(wire="fp64", ids=IdsConfig(layers=0, window=w))) for w in (3, 4))
    assert min(apart(one, other)) > 1e-6


def test_the_first_layer_of_one_chunk_behind_another_is_exact():
    """A model of one layer needs no more than ids, which is what makes them a null."""
    model = Model(vocabulary=50, width=64, layers=1, heads=8, kv_heads=8, ffn=48)
    decoder = Decoder(model, seed=1).double()
    by_ids = InProcess(model, None, nodes=4, ids=IdsConfig())
    alone, whole = InProcess(model, None, nodes=4), InProcess(model, None, nodes=1)
    inputs = tokens()[:, :-1]
    exact, found, control = (decoder(inputs, exchange).detach() for exchange in (whole, by_ids, alone))
    assert (found - exact).abs().max() < FP64
    assert (control - exact).abs().max() > 1e-3


@pytest.mark.parametrize("window", [0, 5, "chunk"])
def test_nothing_beyond_the_window_is_seen(window):
    """What stood more than w tokens before a remote token, or in another chunk, changes nothing that is made of it in
    the second layer."""
    model = Model(vocabulary=50, width=64, layers=2, heads=8, kv_heads=8, ffn=48)
    decoder, exchange = (
        Decoder(model, seed=1).double(),
        InProcess(model, None, nodes=4, ids=IdsConfig(layers=0, window=window)),
    )
    inputs = tokens()[:1, :-1]
    exchange.read(decoder, inputs)
    size, changed = CONTEXT // 4, inputs.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 50
    before = [key.detach() for key, _, _ in exchange._made[1]]
    exchange.read(decoder, changed)
    moved = torch.cat(
        [(key - old).abs().amax((0, 2)) for (key, _, _), old in zip(exchange._made[1], before, strict=True)]
    )
    reach = size - 4 if window == "chunk" else window
    assert moved.nonzero().flatten().tolist() == list(range(3, 3 + reach + 1))


def test_a_later_token_changes_no_earlier_logit():
    case = Case(wire="fp64", ids=IdsConfig(layers=0, window="chunk"))
    data = tokens()
    later = data.clone()
    later[:, 60] = (later[:, 60] + 1) % 50
    one, other = (many_ranks(case, each).logits for each in (data, later))
    assert torch.equal(one[:, :60], other[:, :60])
    assert not torch.equal(one[:, 60:], other[:, 60:])


def test_it_is_named_and_refused():
    assert arm_named("ids").ids == IdsConfig(layers=1, window=0)
    assert arm_named("ids-16").ids == IdsConfig(layers=0, window=16)
    assert arm_named("ids-chunk").ids == IdsConfig(layers=0, window="chunk")
    for name in ("ids-", "ids--1", "ids-many", "ids-99999999999", "ids+int8", "ids-4+int8"):
        with pytest.raises(UsageError, match="is no arm"):
            arm_named(name)
    with pytest.raises(UsageError, match="the table ids is of the exchange 'ids'"):
        Arm(name="x", exchange="all-gather", ids=IdsConfig(layers=2), sync="average", link="bw")
    with pytest.raises(UsageError, match="leave out the codec"):
        Arm(name="x", exchange="ids", codec=arm_named("int8").codec, sync="average", link="bw")
    with pytest.raises(UsageError, match="the model has 2; type 0 for all"):
        make_exchange(
            Arm(name="x", exchange="ids", ids=IdsConfig(layers=3), sync="average", link="bw"), Case().model, [], None
        )


def test_flops_are_those_of_the_operations():
    """Two for each weight and token, and four per width and pair of tokens."""
    model = Model(vocabulary=50, width=64, layers=3, heads=8, kv_heads=2, ffn=48)
    projections = sum(
        p.numel() for name, p in Decoder(model, seed=0).layers[0].named_parameters() if "norm" not in name
    )
    keys = 2 * 64 * model.kv_width
    assert made_flops(model, IdsConfig(), 10) == 10 * 2 * keys
    assert made_flops(model, IdsConfig(layers=0, window=3), 10) == 10 * (2 * keys + 2 * (2 * projections + 4 * 64 * 4))
    chunk = made_flops(model, IdsConfig(layers=0, window="chunk"), 10)
    assert chunk == 10 * (2 * keys + 2 * 2 * projections) + 2 * 4 * 64 * sum(range(1, 11))
