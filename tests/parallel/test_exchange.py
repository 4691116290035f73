"""Context parallelism at N ranks is the arithmetic of one device, and no token sees its future."""

import pytest
import torch
from torch import Tensor, nn

from testbed.codecs import Shape, make_codec
from testbed.codecs.subspace import Rotated
from testbed.config import CodecConfig, Model
from testbed.model import Decoder
from testbed.parallel.exchanges import AllGather, Alone, InProcess, Local
from testbed.parallel.exchanges import all_gather as all_gather_module
from testbed.parallel.sync import all_reduce, flatten
from tests.ranks import run_ranks

CONTEXT, BATCH = 64, 2
CODECS = {
    "exact": CodecConfig(wire="bf16"),
    "subspace": CodecConfig(name="subspace", ranks=(3, 6)),
    "subspace own exact": CodecConfig(name="subspace", ranks=(3, 6), own_chunk="exact"),
    "subspace fp32": CodecConfig(name="subspace", ranks=(3, 6), wire="fp32"),
    "latent fp32": CodecConfig(name="latent", ranks=(8,), wire="fp32"),
    "latent": CodecConfig(name="latent", ranks=(8,), wire="int4", group=8),
    "latent int8": CodecConfig(name="latent", ranks=(6,), wire="int8", group=8),
}


def model_config(kv_heads: int = 4) -> Model:
    return Model(vocabulary=50, width=32, layers=2, heads=4, kv_heads=kv_heads, ffn=48)


def build(config: Model, codec: CodecConfig, dtype: torch.dtype) -> tuple[Decoder, nn.ModuleList]:
    """A decoder and its codecs, started as a run would start them; angles made to matter."""
    decoder = Decoder(config, seed=1).to(dtype)
    codecs = nn.ModuleList(
        make_codec(codec, config.kv_width, layer=layer, seed=1) for layer in range(config.layers)
    ).to(dtype)
    generator = torch.Generator().manual_seed(5)
    for layer, one in zip(decoder.layers, codecs, strict=True):
        activations = torch.randn(200, 2 * config.kv_width, generator=generator, dtype=torch.float64)
        one.start(layer.key, layer.value, activations.to(dtype))
        for module in one.modules():
            if isinstance(module, Rotated):
                nn.init.normal_(module.angle.weight, generator=generator)
    return decoder, codecs


def tokens() -> Tensor:
    return torch.randint(50, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(3))


def parameters(decoder: Decoder, codecs: nn.ModuleList) -> dict[str, Tensor]:
    named = [*decoder.named_parameters(), *((f"codecs.{name}", p) for name, p in codecs.named_parameters())]
    return dict(named)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.numel()


def one_device(config: Model, codec: CodecConfig, dtype: torch.dtype, nodes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of one process: plain attention for one node, N nodes' arithmetic otherwise."""
    decoder, codecs = build(config, codec, dtype)
    exchange = InProcess(config, None if nodes == 1 else list(codecs), nodes=nodes)
    data = tokens()
    logits = decoder(data[:, :-1], exchange)
    # each chunk's share of the loss, over the global count, as the ranks have it
    loss_of(logits, data[:, 1:]).backward()
    return logits.detach(), {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters(decoder, codecs).items()
    }


def many_ranks(
    config: Model, codec: CodecConfig, dtype: torch.dtype, world: int
) -> tuple[Tensor, dict[str, Tensor], list[dict[str, int]]]:
    """The same over `world` ranks: logits put together, gradients all-reduced, bytes sent by channel."""

    def work(transport):
        decoder, codecs = build(config, codec, dtype)
        exchange = AllGather(config, list(codecs), transport)
        data, chunk = tokens(), CONTEXT // world
        own = slice(transport.rank * chunk, (transport.rank + 1) * chunk)
        logits = decoder(data[:, :-1][:, own], exchange)
        labels = data[:, 1:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, own].flatten(), reduction="sum")
        (loss / labels.numel()).backward()
        named = parameters(decoder, codecs)
        sent = dict(transport.sent)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in named.values()]
        total = all_reduce(flatten(grads), transport)
        pieces = total.split([p.numel() for p in named.values()])
        gradients = {n: piece.view_as(p) for (n, p), piece in zip(named.items(), pieces, strict=True)}
        return logits.detach(), gradients, sent

    answers = run_ranks(world, work)
    return torch.cat([logits for logits, _, _ in answers], 1), answers[0][1], [sent for _, _, sent in answers]


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any gradient, relative to the largest entry of that gradient (or 1e-3)."""
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3)) for name in theirs
    )


@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(
    ("dtype", "wire", "output", "gradient"),
    [(torch.float32, "fp32", 2e-6, 5e-6), (torch.float64, "fp64", 1e-12, 1e-12)],
    ids=["fp32", "fp64"],
)
def test_exact_ranks_are_one_device(kv_heads, world, dtype, wire, output, gradient):
    """Invariant 1: outputs and the gradient of every parameter."""
    config, codec = model_config(kv_heads), CodecConfig(wire=wire)
    logits, gradients = one_device(config, codec, dtype, nodes=1)
    ranks_logits, ranks_gradients, _ = many_ranks(config, codec, dtype, world)
    assert (ranks_logits - logits).abs().max() <= output * max(1.0, float(logits.abs().max()))
    assert worst(ranks_gradients, gradients) <= gradient


def test_the_comparison_notices_gradients_that_are_not_returned(monkeypatch):
    """Negative control: without the way back of dK and dV the check above fails by orders of magnitude."""
    config, codec = model_config(), CodecConfig(wire="fp64")
    _, gradients = one_device(config, codec, torch.float64, nodes=1)
    real = all_gather_module._Call.receive

    def deaf(self):
        messages = real(self)
        return messages if self.direction == "forward" else [m if m is None else torch.zeros_like(m) for m in messages]

    monkeypatch.setattr(all_gather_module._Call, "receive", deaf)
    _, ranks_gradients, _ = many_ranks(config, codec, torch.float64, 4)
    assert worst(ranks_gradients, gradients) > 1e-3


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("world", [2, 4])
def test_coded_ranks_are_the_oracle(name, world):
    """What travels over sockets gives what N nodes in one process give, rounding on the wire included."""
    config, codec = model_config(), CODECS[name]
    logits, gradients = one_device(config, codec, torch.float32, nodes=world)
    ranks_logits, ranks_gradients, sent = many_ranks(config, codec, torch.float32, world)
    # a last-bit difference now and then rounds to the wire format's next value: half a code of its group
    output, gradient = {"fp32": (2e-6, 5e-6), "bf16": (1e-3, 1e-2)}.get(codec.wire, (5e-2, 1e-1))
    assert (ranks_logits - logits).abs().max() <= output * logits.abs().max()
    assert worst(ranks_gradients, gradients) <= gradient
    shape = Shape(batch=BATCH, tokens=CONTEXT // world)
    payload = make_codec(codec, config.kv_width, layer=0, seed=0).payload(shape)
    for counted in sent:
        assert counted["kv_forward"] == counted["kv_backward"] == config.layers * payload["kv"] * (world - 1)
        assert counted.get("theta", 0) == 2 * config.layers * payload.get("theta", 0) * (world - 1)


def test_local_sees_only_its_own_chunk():
    """The control: what Local gives a rank is what InProcess gives without codecs."""
    config = model_config()
    decoder = Decoder(config, seed=1)
    data, world = tokens()[:, :-1], 4
    whole = decoder(data, InProcess(config, None, nodes=world))
    chunk = CONTEXT // world
    for rank in range(world):
        own = decoder(data[:, rank * chunk : (rank + 1) * chunk], Local(config, transport=Alone(rank, world)))
        assert torch.allclose(own, whole[:, rank * chunk : (rank + 1) * chunk], atol=2e-5)


def leaks(codec: CodecConfig, position: int, world: int = 4) -> bool:
    """Whether changing the token at `position` moves any earlier logit by a single bit."""
    config = model_config()
    decoder, codecs = build(config, codec, torch.float32)
    exchange = InProcess(config, list(codecs), nodes=world)
    data = tokens()[:, :-1]
    changed = data.clone()
    changed[:, position] = (changed[:, position] + 1) % 50
    with torch.no_grad():
        before, after = decoder(data, exchange), decoder(changed, exchange)
    assert not torch.equal(before[:, position:], after[:, position:])
    return not torch.equal(before[:, :position], after[:, :position])


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("position", [CONTEXT - 1, CONTEXT // 4 - 1, CONTEXT // 2 - 1, CONTEXT // 2 + 5])
def test_no_token_sees_its_future(name, position):
    """Invariant 3, to the last bit: the end of the sequence, ends of chunks, the middle of one."""
    assert not leaks(CODECS[name], position)


def test_a_leak_is_noticed(monkeypatch):
    """Negative control: θ from the sub-chunk itself (the literal reading of the paper) shows it its future."""

    def literal(self, z_BSTE):
        return 0.5 * torch.tanh(self.angle(z_BSTE.mean(2)).squeeze(-1) / 0.5)

    monkeypatch.setattr(Rotated, "angles", literal)
    assert leaks(CODECS["subspace"], CONTEXT // 2 - 1)
