"""The trainer beside a plain PyTorch loop, and the collector beside the trainer; ratios measured in one run.

    .venv/bin/python benchmarks/trainer.py

One rank, one thread, the `quick` model on whole sequences. Blocks of steps alternate, so that a drift of the machine's
speed hits both alike.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from testbed.collector.metrics import MetricsFile, system_sample
from testbed.config import Arm, CodecConfig, Preset, load_toml
from testbed.data.corpus import standard_library
from testbed.data.recall import RecallMix
from testbed.model import Decoder
from testbed.parallel.attention import rotary_tables, rotate, split_heads
from testbed.parallel.transport import Sockets
from testbed.trainer import Trainer, learning_rate

BLOCKS, STEPS = 12, 8


class Plain:
    """What a plain loop does for attention."""

    def __init__(self, preset: Preset) -> None:
        self.model = preset.model
        width = preset.model.head_width
        self.tables = rotary_tables(0, preset.context, width, preset.model.rope_base, torch.zeros(1))

    def attend(self, layer, q, k, v):  # noqa: ARG002
        width = self.model.head_width
        q, k = rotate(split_heads(q, width), self.tables), rotate(split_heads(k, width), self.tables)
        out = F.scaled_dot_product_attention(q, k, split_heads(v, width), is_causal=True)
        return out.transpose(1, 2).flatten(2)


def main() -> None:
    torch.set_num_threads(1)
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
            seconds_of(lambda: metrics.write({**dict.fromkeys("abcdefghijklmnop", 1.0), **system_sample()}))
        )
    ratio = median(a / b for a, b in zip(ours[1:], theirs[1:], strict=True))
    print(f"plain loop {median(theirs) * 1e3:.1f} ms a step, trainer {median(ours) * 1e3:.1f} ms: ratio {ratio:.3f}")
    print(f"collector {median(collecting) * 1e6:.0f} us a step: {median(collecting) / median(ours):.3%} of it")


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


if __name__ == "__main__":
    main()
