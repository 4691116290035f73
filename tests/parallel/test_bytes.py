"""Messages and bytes of every exchange beside closed forms that are written here from the schemes themselves.

What is counted is what was handed to the transport, forward and backward apart, on every rank.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from testbed.codecs import Shape, make_codec
from testbed.config import CodecConfig
from testbed.parallel.exchanges import all_gather as all_gather_module
from testbed.parallel.exchanges import make_exchange
from testbed.parallel.transport import HEAD_BYTES
from tests.parallel.arithmetic import BATCH, CONTEXT, Case, documents
from tests.ranks import run_ranks

SIZE = {"fp32": 4, "bf16": 2}
Count = tuple[int, int]
"""(messages, bytes)."""


def counted(case: Case, *, as_it_says: bool = True) -> list[dict[str, Count]]:
    """By rank: what one layer's attention hands to the transport on its way out and back, which is what the exchange
    says of itself."""

    def work(transport):
        model = replace(case.model, layers=1)
        codec = make_codec(case.arm.codec, model.kv_width, layer=0, seed=0, kv_heads=model.kv_heads)
        one = make_exchange(case.arm, model, [codec], transport).on(documents() if case.documents else None)
        tally: dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter()}
        phase, real = "forward", transport.exchange

        def exchange(outgoing, channels, **settings):
            messages = [message for message in outgoing if message is not None]
            tally[phase].update(messages=len(messages), bytes=sum(message.numel() for message in messages))
            return real(outgoing, channels, **settings)

        transport.exchange = exchange
        tokens = CONTEXT // case.world
        q, k, v = (
            torch.randn(BATCH, tokens, width, requires_grad=True)
            for width in (model.width, model.kv_width, model.kv_width)
        )
        out = one.attend(0, q, k, v)
        phase = "backward"
        out.sum().backward()
        found = {direction: (count["messages"], count["bytes"]) for direction, count in tally.items()}
        for direction in ("forward", "backward") if as_it_says else ():
            said = one.traffic(0, direction, BATCH, CONTEXT)
            assert (said.messages, sum(said.payload.values())) == found[direction]
        return found

    return run_ranks(case.world, work)


def closed_form(case: Case, rank: int) -> dict[str, Count]:
    """Of exact schemes: elements times bytes, from the number of ranks, tokens and widths alone."""
    world, element = case.world, SIZE[case.wire]
    tokens = BATCH * CONTEXT // world
    kv = 2 * case.model.kv_width
    if case.exchange == "local":
        return {"forward": (0, 0), "backward": (0, 0)}
    if case.exchange == "all-gather":
        both = world - 1, (world - 1) * tokens * kv * element
        return {"forward": both, "backward": both}
    if case.exchange == "ring":
        once = (world - 1) * tokens * kv * element
        return {"forward": (world - 1, once), "backward": (2 * (world - 1), 2 * once)}
    if case.exchange == "ulysses":
        numbers = tokens * (2 * case.model.width + kv) * (world - 1) // world
        return {"forward": (2 * (world - 1), numbers * element), "backward": (2 * (world - 1), numbers * element)}
    seen = seen_documents if case.documents else seen_causally
    out, back = seen(case, rank)
    return {"forward": (world - 1, out * kv * element), "backward": (world - 1, back * kv * element)}


def seen_causally(case: Case, rank: int) -> Count:
    """(tokens that some later rank sees, summed over ranks; tokens of others that this one sees), without documents."""
    others, tokens = case.world - 1, BATCH * CONTEXT // case.world
    if case.layout == "contiguous":
        return (others - rank) * tokens, rank * tokens
    return (others + rank) * tokens // 2, (others + others - rank) * tokens // 2


def seen_documents(case: Case, rank: int) -> Count:
    """The same by looking at every pair of tokens."""
    size = CONTEXT // case.world
    of = {
        other: list(range(other * size, (other + 1) * size))
        if case.layout == "contiguous"
        else [
            *range(other * size // 2, (other + 1) * size // 2),
            *range(CONTEXT - (other + 1) * size // 2, CONTEXT - other * size // 2),
        ]
        for other in range(case.world)
    }

    def seen(owner: int, by: int) -> int:
        return sum(
            any(query > key and row[query] == row[key] for query in of[by])
            for row in documents().tolist()
            for key in of[owner]
        )

    others = [other for other in range(case.world) if other != rank]
    return sum(seen(rank, other) for other in others), sum(seen(other, rank) for other in others)


@pytest.mark.parametrize("wire", SIZE)
@pytest.mark.parametrize("heads", ["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize("exchange", ["all-gather", "mask-aware", "ring", "ulysses", "local"])
def test_messages_and_bytes_are_the_schemes(exchange, layout, heads, wire):
    """Exact K and V, every number of ranks, every rank, forward and backward."""
    for world in (1, 2, 3, 4, 8):
        case = Case(exchange=exchange, layout=layout, heads=heads, wire=wire, world=world)
        if case.possible:
            assert counted(case) == [closed_form(case, rank) for rank in range(world)], world


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_documents_leave_out_what_nobody_sees(layout):
    """A mask-aware exchange sends as many tokens as a look at every pair of them finds."""
    case = Case(exchange="mask-aware", layout=layout, documents=True)
    assert counted(case) == [closed_form(case, rank) for rank in range(case.world)]


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize(
    ("codec", "per_token", "per_chunk"),
    [
        (CodecConfig(name="subspace", ranks=(6, 12)), 2 * (6 + 12), 32),  # eight θ in fp32 a chunk
        (CodecConfig(name="subspace+int8", ranks=(6, 12), group=8), (6 + 2) + (12 + 4), 32),
        (CodecConfig(name="latent", ranks=(16,)), 2 * 16, 0),
        (CodecConfig(name="latent+int4", ranks=(16,), group=8), 16 // 2 + 2 * 2, 0),
        (CodecConfig(name="best", group=8), 16 // 2 + 2 * 2, 0),  # latent+int4 of rank d/4
        (CodecConfig(name="int8", group=8), 2 * (64 + 16), 0),
        (CodecConfig(name="int4", group=8), 2 * (32 + 16), 0),
        (CodecConfig(name="int4", group=8, wire_backward="bf16"), None, 0),
    ],
)
def test_coded_messages_and_bytes(codec, per_token, per_chunk, layout):
    """All-gather: N−1 messages of a codec's bytes each way, whatever the layout."""
    case = Case(codec=codec, layout=layout)
    others, tokens = case.world - 1, BATCH * CONTEXT // case.world
    chunks = BATCH * (2 if layout == "zigzag" else 1)
    out, back = (96, 256) if per_token is None else (per_token, per_token)
    expected = {
        direction: (others, others * (tokens * each + chunks * per_chunk))
        for direction, each in (("forward", out), ("backward", back))
    }
    assert counted(case) == [expected] * case.world


def test_a_coded_ring_sends_its_block_twice_and_its_gradient_once():
    """A latent's coefficients: (N−1) blocks out; back, the same again and their gradients in fp32."""
    case = Case(exchange="ring", codec=CodecConfig(name="latent", ranks=(16,), wire_backward="fp32"))
    tokens = BATCH * CONTEXT // case.world
    expected = {"forward": (3, 3 * tokens * 32), "backward": (6, 3 * tokens * (32 + 64))}
    assert counted(case) == [expected] * case.world


def test_the_papers_ranks_take_at_most_37_thousandths():
    """Of exact all-gather's bytes, both ways, with θ and the messages' heads: width 2048, 8 ranks, 32768 tokens."""
    shape = Shape(batch=1, tokens=32768 // 8)
    sent = {}
    for config in (CodecConfig(), CodecConfig(name="subspace", ranks=(41, 102))):
        codec = make_codec(config, 2048, layer=0, seed=0, kv_heads=32)
        sent[config.name] = {
            direction: sum(codec.payload(shape, direction).values()) + HEAD_BYTES
            for direction in ("forward", "backward")
        }
    for direction in ("forward", "backward"):
        assert sent["subspace"][direction] <= 0.037 * sent["exact"][direction]


def test_a_message_too_many_is_noticed(monkeypatch):
    """Negative control: an all-gather that posts everything twice does not match its closed form."""
    case = Case(world=2)
    real = all_gather_module._Call.post

    def twice(self, direction, by_peer):
        real(self, direction, by_peer)
        self.receive()
        real(self, direction, by_peer)

    monkeypatch.setattr(all_gather_module._Call, "post", twice)
    assert counted(case, as_it_says=False) != [closed_form(case, rank) for rank in range(case.world)]
