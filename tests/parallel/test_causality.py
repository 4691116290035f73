"""No codec, layout or exchange lets a token see its future (invariant 3), to the last bit."""

from dataclasses import replace

import pytest
import torch

from testbed.config import CodecConfig
from testbed.config.arm import LayoutName
from testbed.config.codec import SubspaceConfig
from testbed.parallel.exchanges import Alone, InProcess, Local
from testbed.parallel.layout import Layout
from tests.parallel.arithmetic import CODECS, CONTEXT, VOCABULARY, Case, build, many_ranks, tokens

POSITIONS = [CONTEXT - 1, CONTEXT // 4 - 1, CONTEXT // 2 - 1, CONTEXT // 2 + 5]
"""The end of the sequence, ends of chunks, the middle of one."""


def leaks(codec: CodecConfig, layout: LayoutName = "contiguous", world: int = 4) -> list[int]:
    """Positions at which changing a token moves any earlier logit by a single bit."""
    case = Case(codec=codec, layout=layout, world=world)
    decoder, codecs = build(case)
    exchange = InProcess(case.model, list(codecs), nodes=world, layout=Layout(layout, world))
    data, found = tokens()[:, :-1], []
    with torch.no_grad():
        before = decoder(data, exchange)
        for position in POSITIONS:
            changed = data.clone()
            changed[:, position] = (changed[:, position] + 1) % VOCABULARY
            after = decoder(changed, exchange)
            assert not torch.equal(before[:, position:], after[:, position:])
            if not torch.equal(before[:, :position], after[:, :position]):
                found.append(position)
    return found


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_no_token_sees_its_future(name, layout):
    """Every codec and layout."""
    assert leaks(CODECS[name], layout) == []


def leaks_over_ranks(case: Case) -> list[int]:
    """The same over real sockets."""
    before, found = many_ranks(case).logits, []
    for position in POSITIONS:
        changed = tokens()
        changed[:, position] = (changed[:, position] + 1) % VOCABULARY
        after = many_ranks(case, changed).logits
        assert not torch.equal(before[:, position:], after[:, position:])
        if not torch.equal(before[:, :position], after[:, :position]):
            found.append(position)
    return found


@pytest.mark.parametrize("exchange", ["all-gather", "mask-aware", "ring", "ulysses", "local"])
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_no_exchange_shows_the_future(exchange, layout):
    """Every exchange and layout, exact."""
    assert leaks_over_ranks(Case(exchange=exchange, layout=layout)) == []


@pytest.mark.parametrize("exchange", ["all-gather", "ring"])
def test_an_exchange_shows_what_a_codec_leaks(exchange):
    """Negative control: literal θ over sockets; and causal θ, which is the paper's without the leak."""
    literal = CodecConfig(name="subspace", ranks=(6, 12), subspace=SubspaceConfig(theta="literal"))
    assert CONTEXT // 2 + 5 in leaks_over_ranks(Case(exchange=exchange, codec=literal))
    assert leaks_over_ranks(Case(exchange=exchange, codec=CODECS["subspace"])) == []


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_the_papers_literal_theta_leaks(layout):
    """Negative control: θ from the chunk itself shows projected tokens of the own chunk their future."""
    literal = CodecConfig(name="subspace", ranks=(6, 12), subspace=SubspaceConfig(theta="literal"))
    assert CONTEXT // 2 + 5 in leaks(literal, layout)
    assert leaks(replace(literal, own_chunk="exact"), layout) == []


def test_local_sees_only_its_own_chunk():
    """The control: what Local gives a rank is what InProcess gives without codecs, on either layout."""
    for layout in ("contiguous", "zigzag"):
        case = Case(exchange="local", layout=layout)
        decoder, _ = build(case)
        data = tokens()[:, :-1]
        whole = decoder(data, InProcess(case.model, None, nodes=4, layout=Layout(layout, 4)))
        for rank in range(4):
            local = Local(case.model, transport=Alone(rank, 4), layout=Layout(layout, 4))
            positions = local.layout.positions(rank, CONTEXT)
            assert torch.allclose(decoder(data[:, positions], local), whole[:, positions], atol=2e-5)
