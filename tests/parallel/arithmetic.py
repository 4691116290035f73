"""The same training step on one device and on N ranks, and how far apart the two are."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from testbed.codecs import Codec, Codecs, make_codec
from testbed.codecs.rotated import Rotated
from testbed.config import Arm, CodecConfig, Model
from testbed.config.arm import IdsConfig, LayoutName
from testbed.config.codec import SubspaceConfig
from testbed.model import Decoder
from testbed.parallel.exchanges import InProcess, make_exchange
from testbed.parallel.layout import Layout
from testbed.parallel.sync import all_reduce, flatten
from tests.ranks import run_ranks

CONTEXT, BATCH, VOCABULARY = 96, 2, 50
KV_HEADS = {"MHA": 8, "GQA": 2, "MQA": 1}
FP32_OUTPUT, FP32_GRADIENT = 2e-6, 5e-6
FP64 = 1e-12
BF16_RATIO = 2.5
"""A bf16 wire may err so many times more than one device that computes in bf16."""
CODECS = {
    "exact": CodecConfig(wire="bf16"),
    "subspace": CodecConfig(name="subspace", ranks=(6, 12)),
    "subspace fp32": CodecConfig(name="subspace", ranks=(6, 12), wire="fp32"),
    "subspace own exact": CodecConfig(name="subspace", ranks=(6, 12), wire="fp32", own_chunk="exact"),
    "subspace int8": CodecConfig(name="subspace+int8", ranks=(6, 12), group=8),
    "subspace exact rotation": CodecConfig(name="subspace", ranks=(6, 12), subspace=SubspaceConfig(rotation="exact")),
    "subspace per head": CodecConfig(
        name="subspace", ranks=(8, 16), wire="fp32", subspace=SubspaceConfig(heads="per-head")
    ),
    "subspace fixed": CodecConfig(name="subspace", ranks=(6, 12), subspace=SubspaceConfig(rotation="none")),
    "latent fp32": CodecConfig(name="latent", ranks=(16,), wire="fp32"),
    "latent int4": CodecConfig(name="latent+int4", ranks=(16,), group=8),
    "int8": CodecConfig(name="int8", group=8),
    "int4": CodecConfig(name="int4", group=8, hadamard=True),
    "topk": CodecConfig(name="topk", fraction=0.2, wire="fp32"),
    "recent": CodecConfig(name="recent", fraction=0.25, wire="fp32"),
    "random": CodecConfig(name="random", ranks=(16,), wire="fp32"),
    "random int8": CodecConfig(name="random+int8", ranks=(16,), group=8),
    "pca": CodecConfig(name="pca", ranks=(8,)),
    "best": CodecConfig(name="best", group=8),
    "int8, back fp32": CodecConfig(name="int8", group=8, wire_backward="fp32"),
    "best, back fp32": CodecConfig(name="best", group=8, wire_backward="fp32"),
}
"""Every codec, at ranks that fit the model here."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to share a step out among ranks."""

    exchange: str = "all-gather"
    layout: LayoutName = "contiguous"
    heads: str = "MHA"
    world: int = 4
    wire: str = "fp32"
    """fp64, fp32 or bf16; models compute in fp64 under fp64, in fp32 otherwise."""
    documents: bool = False
    overlap: bool = True
    interleave: bool = False
    recompute: bool = False
    codec: CodecConfig | None = None
    ids: IdsConfig | None = None
    """Of the exchange `ids`."""
    first_layer: Literal["exchanged", "ids"] = "exchanged"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.wire == "fp64" else torch.float32

    @property
    def model(self) -> Model:
        return Model(vocabulary=VOCABULARY, width=64, layers=2, heads=8, kv_heads=KV_HEADS[self.heads], ffn=48)

    @property
    def arm(self) -> Arm:
        if self.ids is not None:
            return Arm(name="case", exchange="ids", ids=self.ids, layout=self.layout, sync="gradients", link="fast")
        codec = self.codec
        if codec is None:
            codec = CodecConfig()
            object.__setattr__(codec, "wire", self.wire)  # fp64 is for tests alone
        arm = Arm(name="case", exchange="all-gather", codec=codec, sync="gradients", link="fast", overlap=self.overlap)
        arm = replace(arm, exchange=self.exchange, layout=self.layout, interleave=self.interleave)
        return replace(arm, first_layer=self.first_layer)

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.exchange} {self.layout} {self.heads} N={self.world} {self.wire}"

    @property
    def possible(self) -> bool:
        """Whether the heads can be shared out; everything else is possible here."""
        return self.exchange != "ulysses" or KV_HEADS[self.heads] % self.world == 0


@dataclass(frozen=True)
class Step:
    """What came of a step."""

    logits: Tensor
    gradients: dict[str, Tensor]
    sent: tuple[dict[str, int], ...] = ()
    expected: tuple[dict[str, int], ...] = ()


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(3))


def documents() -> Tensor:
    """Documents that begin in the middle of chunks, at their edges, and one of a single token."""
    starts = torch.zeros(BATCH, CONTEXT, dtype=torch.long)
    starts[0, [5, 24, 25, 61]] = 1
    starts[1, [47, 48, 90]] = 1
    return starts.cumsum(1)


def build(case: Case) -> tuple[Decoder, Codecs]:
    """A decoder and its codecs, started as a run would start them; angles made to matter."""
    decoder = Decoder(case.model, seed=1).to(case.dtype)
    decoder.recompute = case.recompute
    width, heads = case.model.kv_width, case.model.kv_heads
    codecs = Codecs(
        make_codec(case.arm.codec, width, layer=layer, seed=1, kv_heads=heads) for layer in range(case.model.layers)
    ).to(case.dtype)
    generator = torch.Generator().manual_seed(5)
    for layer, one in zip(decoder.layers, codecs, strict=True):
        activations = torch.randn(200, 2 * width, generator=generator, dtype=torch.float64)
        one.start(layer.key, layer.value, activations.to(case.dtype))
        for module in one.modules():
            if isinstance(module, Rotated) and hasattr(module, "angle"):
                nn.init.normal_(module.angle.weight, generator=generator)
    return decoder, codecs


def one_device(case: Case, *, coded: bool = False, dtype: torch.dtype | None = None) -> Step:
    """On one device: plain attention, or with `coded` the arithmetic of N ranks and their wire."""
    decoder, codecs = build(case)
    if dtype is not None:
        decoder = decoder.to(dtype)
    apart = coded or case.exchange == "local" or case.ids is not None
    layout = Layout(case.layout, case.world) if apart else Layout("contiguous", 1)
    exchange = InProcess(case.model, list(codecs) if coded else None, nodes=1, layout=layout, ids=case.ids)
    data = tokens()
    logits = decoder(data[:, :-1], exchange.on(documents() if case.documents else None))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten(), reduction="sum")
    (loss / data[:, 1:].numel()).backward()
    return Step(logits.detach(), _gradients(decoder, codecs))


def many_ranks(case: Case, data: Tensor | None = None) -> Step:
    """On `case.world` ranks over real sockets: logits put together, gradients summed, bytes sent and as predicted."""
    data = tokens() if data is None else data

    def work(transport):
        decoder, codecs = build(case)
        transport.overlap(case.overlap and case.world > 1)
        exchange = make_exchange(case.arm, case.model, _sent_by(case, codecs), transport)
        positions = exchange.layout.positions(transport.rank, CONTEXT)
        inputs, labels = data[:, :-1][:, positions], data[:, 1:][:, positions]
        parts = [slice(i, i + 1) for i in range(BATCH)] if case.interleave else [slice(None)]
        masks = documents() if case.documents else None
        views = [exchange.on(None if masks is None else masks[part]) for part in parts]
        logits = torch.cat(decoder.interleaved([inputs[part] for part in parts], views))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        (loss / (BATCH * CONTEXT)).backward()
        sent = {channel: count for channel, count in transport.sent.items() if count}
        total = {}
        for view, part in zip(views, parts, strict=True):
            for layer in range(case.model.layers):
                for direction in ("forward", "backward"):
                    traffic = view.traffic(layer, direction, len(inputs[part]), CONTEXT)
                    for channel, count in (*traffic.payload.items(), ("other", 24 * traffic.messages)):
                        total[channel] = total.get(channel, 0) + count
        expected = {channel: count for channel, count in total.items() if count}
        gradients = _gradients(decoder, codecs)
        summed = all_reduce(flatten(gradients.values()), transport).split([g.numel() for g in gradients.values()])
        whole = {name: piece.view_as(g) for (name, g), piece in zip(gradients.items(), summed, strict=True)}
        return positions, logits.detach(), whole, sent, expected

    answers = run_ranks(case.world, work)
    logits = torch.empty(BATCH, CONTEXT, VOCABULARY, dtype=case.dtype)
    for positions, own, *_ in answers:
        logits[:, positions] = own
    return Step(logits, answers[0][2], tuple(a[3] for a in answers), tuple(a[4] for a in answers))


def _sent_by(case: Case, codecs: Codecs) -> list[Codec]:
    return [] if case.exchange == "local" or case.ids is not None else list(codecs)


def _gradients(decoder: Decoder, codecs: Codecs) -> dict[str, Tensor]:
    named = [*decoder.named_parameters(), *((f"codecs.{name}", p) for name, p in codecs.named_parameters())]
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}


def apart(found: Step, wanted: Step) -> tuple[float, float]:
    """(largest difference of logits over their largest, the same of the worst parameter's gradient)."""
    outputs = (found.logits - wanted.logits).abs().max() / wanted.logits.abs().max()
    worst = 0.0
    for name, gradient in wanted.gradients.items():
        size = gradient.abs().max()
        if size > 0:
            worst = max(worst, float((found.gradients[name] - gradient).abs().max() / size))
    return float(outputs), worst


def hold_to_one_device(case: Case) -> None:
    """Outputs, summed gradients, and payload to the byte of its closed form."""
    found = many_ranks(case)
    outputs, gradients = apart(found, one_device(case))
    most_outputs, most_gradients = tolerance(case)
    assert outputs <= most_outputs
    assert gradients <= most_gradients
    assert found.sent == found.expected


def tolerance(case: Case) -> tuple[float, float]:
    """(of outputs, of gradients) that exact exchanges are held to; a bf16 wire to a device's own bf16."""
    if case.wire == "fp64":
        return FP64, FP64
    if case.wire == "fp32":
        return FP32_OUTPUT, FP32_GRADIENT
    exact, rounded = (
        one_device(replace(case, wire="fp32")),
        one_device(replace(case, wire="fp32"), dtype=torch.bfloat16),
    )
    outputs, gradients = apart(
        Step(rounded.logits.float(), {n: g.float() for n, g in rounded.gradients.items()}), exact
    )
    return BF16_RATIO * outputs, BF16_RATIO * gradients
