"""The trainer beside a plain PyTorch loop, the collector beside it, codecs beside the compute; ratios of one run.

.venv/bin/python benchmarks/trainer.py [plain|codecs|all]

plain   one rank, one thread, the `quick` model on whole sequences. Blocks of steps alternate, so that a drift of
        the machine's speed hits both alike.
codecs  the `medium` model on the last of four ranks, which computes and decodes most, and the mean over ranks:
        encoding, packing, unpacking, decoding and the way back, over forward and backward passes without them.
        Messages come back at once, so that nothing waits.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from echo import Echo

from testbed.codecs import Codec, Shape, make_codec
from testbed.collector.metrics import MetricsFile, system_sample
from testbed.config import Arm, CodecConfig, Model, Preset, load_toml
from testbed.data.corpus import standard_library
from testbed.data.recall import RecallMix
from testbed.model import Decoder
from testbed.parallel.attention import rotary_tables, rotate, split_heads
from testbed.parallel.exchanges import AllGather
from testbed.parallel.transport import Sockets
from testbed.trainer import Trainer, learning_rate

BLOCKS, STEPS = 12, 8
NODES, TOKENS, ROUNDS = 4, 1024, 5
"""Of the codecs' part: tokens of one sequence on each of so many nodes."""
CODECS = {
    "exact": CodecConfig(),
    "subspace": CodecConfig(name="subspace", ranks=(10, 26)),
    "latent int4": CodecConfig(name="latent+int4", ranks=(128,)),
    "best": CodecConfig(name="best"),
}


class Plain:
    """What a plain loop does for attention."""

    def __init__(self, preset: Preset) -> None:
        self.model = preset.model
        width = preset.model.head_width
        self.tables = rotary_tables(torch.arange(preset.context), width, preset.model.rope_base, torch.zeros(1))

    def begin(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:  # noqa: ARG002
        width = self.model.head_width

        def attended() -> Tensor:
            turned_q, turned_k = (rotate(split_heads(x, width), self.tables) for x in (q, k))
            out = F.scaled_dot_product_attention(turned_q, turned_k, split_heads(v, width), is_causal=True)
            return out.transpose(1, 2).flatten(2)

        return attended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=("plain", "codecs", "all"))
    what = parser.parse_args().what
    torch.set_num_threads(1)
    missed = (beside_a_plain_loop() if what != "codecs" else []) + (codec_costs() if what != "plain" else [])
    for text in missed:
        print(f"missed: {text}")
    return 1 if missed else 0


def beside_a_plain_loop() -> list[str]:
    """Whole steps, update included; at most 1.10."""
    preset = load_toml(Preset, "presets", "quick")
    corpus = standard_library()
    mix = RecallMix(corpus.train, corpus.validation, seed=0)
    arm = Arm(name="exact", exchange="all-gather", codec=CodecConfig(), sync="average", link="fast")
    trainer = Trainer(preset, arm, mix, Sockets(0, {}), seed=0, warm=None)
    plain = plain_loop(preset, mix)
    metrics = MetricsFile(Path(tempfile.mkdtemp()), 0)
    ours, theirs, collecting = [], [], []
    for _ in range(BLOCKS):
        ours.append(seconds_of(trainer.step))
        theirs.append(seconds_of(plain))
        collecting.append(
            seconds_of(lambda: metrics.write({}, **dict.fromkeys("abcdefghijklmnop", 1.0), **system_sample()))
        )
    ratio = median(a / b for a, b in zip(ours[1:], theirs[1:], strict=True))
    print(f"plain loop {median(theirs) * 1e3:.1f} ms a step, trainer {median(ours) * 1e3:.1f} ms: ratio {ratio:.3f}")
    print(f"collector {median(collecting) * 1e6:.0f} us a step: {median(collecting) / median(ours):.3%} of it")
    trainer.close()
    return [f"trainer / plain loop = {ratio:.3f}, at most 1.10"] if ratio > 1.10 else []


def seconds_of(step) -> float:
    """Mean over a block of steps."""
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - started) / STEPS


def plain_loop(preset: Preset, mix: RecallMix):
    """A step of an ordinary training loop."""
    model, attention = Decoder(preset.model, seed=0), Plain(preset)
    optimizer = torch.optim.AdamW(model.parameters(), betas=preset.betas, weight_decay=preset.weight_decay, fused=True)
    index = 0

    def step() -> None:
        nonlocal index
        batch = mix.batch("train", index, preset.batch, preset.context)
        tokens, labels, kept = (torch.from_numpy(x.copy()) for x in (batch.tokens, batch.labels, batch.counted))
        loss = F.cross_entropy(model(tokens, attention)[kept], labels[kept])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), preset.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(preset, index)
        optimizer.step()
        optimizer.zero_grad()
        index += 1

    return step


def codec_costs() -> list[str]:
    """Seconds of each codec's own work in a step over those of a step whose K and V travel as they are."""
    preset = load_toml(Preset, "presets", "medium")
    model = preset.model
    decoder = Decoder(model, seed=0)
    tokens = torch.randint(model.vocabulary, (1, TOKENS + 1))
    ranks = range(NODES)
    work = {name: CodecWork(config, model) for name, config in CODECS.items()}
    steps = {rank: step_of(decoder, tokens, rank) for rank in ranks}
    seconds: dict[Any, list[float]] = {}
    for _ in range(ROUNDS + 1):  # in turns, so that a drift of the machine's speed hits all alike
        for rank, step in steps.items():
            seconds.setdefault(rank, []).append(timed(step))
        for name, one in work.items():
            for received in ranks:
                seconds.setdefault((name, received), []).append(model.layers * timed(lambda o=one, r=received: o(r)))

    def share(name: str, over: list[int]) -> float:
        """Of a codec's own work in the step, over these ranks together: the median of the rounds' ratios."""
        rounds = range(1, ROUNDS + 1)
        return median(sum(seconds[name, r][i] for r in over) / sum(seconds[r][i] for r in over) for i in rounds)

    print(f"medium: {model.layers} layers, width {model.width}, {TOKENS} tokens on each of {NODES} nodes, one thread")
    print(f"{'codec':12s} {'last rank':>12s} {'of its step':>12s} {'mean of ranks':>14s}")
    missed = []
    for name in CODECS:
        last, mean = share(name, [NODES - 1]), share(name, list(ranks))
        print(f"{name:12s} {median(seconds[name, NODES - 1]) * 1e3:9.1f} ms {last:12.1%} {mean:14.1%}")
        missed += [f"{name}: {mean:.1%} of the compute, at most 5 %"] if mean > 0.05 else []
    return missed


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def step_of(decoder: Decoder, tokens: Tensor, rank: int) -> Callable[[], None]:
    """Forward and backward passes of a rank that sees the chunks before its own, exact, in fp32."""
    model = decoder.config
    codecs = [make_codec(CodecConfig(wire="fp32"), model.kv_width, layer=i, seed=0) for i in range(model.layers)]
    exchange = AllGather(model, codecs, Echo(rank, NODES))  # pyrefly: ignore

    def step() -> None:
        logits = decoder(tokens[:, :-1], exchange)
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        decoder.zero_grad()

    return step


class CodecWork:
    """All that a codec adds to one layer of a step: called with the number of other ranks' chunks that are seen."""

    def __init__(self, config: CodecConfig, model: Model) -> None:
        self.codec: Codec = make_codec(config, model.kv_width, layer=0, seed=0, kv_heads=model.kv_heads)
        linear = nn.Linear(model.width, model.kv_width, bias=False)
        self.codec.start(linear, linear, torch.randn(1200, 2 * model.kv_width))
        self.shape = Shape(batch=1, tokens=TOKENS)
        self.key, self.value = (torch.randn(1, TOKENS, model.kv_width, requires_grad=True) for _ in range(2))
        self.gradient = torch.randn(1, TOKENS, model.kv_width)

    def __call__(self, seen: int) -> None:
        codec, shape = self.codec, self.shape
        encoded = codec.encode(self.key, self.value)
        message = codec.pack(tuple(part.detach() for part in encoded.parts), shape)
        decoder = tuple(tensor.detach().requires_grad_() for tensor in codec.decoder_parameters())
        total: list[Any] = [torch.zeros_like(part) for part in encoded.parts]
        for _ in range(seen):
            parts = tuple(part.requires_grad_() for part in codec.unpack(message, shape, self.key))  # pyrefly: ignore
            outputs = codec.decode(parts, decoder)
            found = torch.autograd.grad(outputs, [*parts, *decoder], [self.gradient, self.gradient])
            returned = codec.pack(found[: len(parts)], shape, "backward")
            for one, part in zip(total, codec.unpack(returned, shape, self.key, "backward"), strict=True):
                one += part
        given = [(part, one) for part, one in zip(encoded.parts, total, strict=True) if part.requires_grad]
        torch.autograd.grad([part for part, _ in given], [self.key, self.value], [one for _, one in given])


if __name__ == "__main__":
    sys.exit(main())
