"""No codec, layout or exchange lets a token see its future (invariant 3), to the last bit."""

from dataclasses import replace

import pytest
import torch

from testbed.config import CodecConfig
from testbed.config.codec import SubspaceConfig
from testbed.parallel.exchanges import Alone, InProcess, Local
from testbed.parallel.layout import Layout
from tests.parallel.arithmetic import CODECS, CONTEXT, VOCABULARY, Case, build, tokens

POSITIONS = [CONTEXT - 1, CONTEXT // 4 - 1, CONTEXT // 2 - 1, CONTEXT // 2 + 5]
"""The end of the sequence, ends of chunks, the middle of one."""


def leaks(codec: CodecConfig, layout: str = "contiguous", world: int = 4) -> list[int]:
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
