"""The warm start: uncompressed steps on short contexts, done once and given to every arm."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from testbed.config import Arm, Preset
from testbed.data.source import Source
from testbed.parallel.exchanges import InProcess, Local
from testbed.parallel.transport import Transport
from testbed.trainer.loop import Trainer
from testbed.trainer.numbers import agree, digest
from testbed.trainer.warm_weights import WarmStart

__all__ = ["warm_start"]

_RECORDED_BATCHES = 8
_RECORDED_TOKENS = 65536
"""At most, of all batches; a whole sequence in any case."""


def warm_start(
    preset: Preset,
    mix: Source,
    transport: Transport,
    *,
    seed: int,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> WarmStart:
    """Uncompressed steps on short contexts, each rank on sequences of its own, gradients all-reduced every step."""
    arm = Arm(name="warm start", exchange="local", sync="gradients", overlap=False, link="fast")
    trainer = Trainer(replace(preset, accumulate=1), arm, mix, transport, seed=seed, warm=None, device=device)
    trainer.exchange = Local(preset.model)  # every sequence starts at position 0, whichever rank reads it
    losses = []
    for step in range(preset.warm_steps):
        context = preset.short_context(step)
        sequences = preset.batch * preset.context // context
        batch = mix.batch("train", step, sequences, context)
        rows = slice(trainer.rank * sequences // trainer.world, (trainer.rank + 1) * sequences // trainer.world)
        loss, tokens = trainer.learn_from(batch, rows, slice(None))
        trainer.sync_gradients()
        trainer.update(step)
        losses.append(loss / max(1, tokens))
        progress(step + 1, preset.warm_steps)
    weights = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
    fingerprint = digest(weights.values())
    agree(fingerprint, transport, "warm-started weights")
    moments = {
        name: {key: value.clone() for key, value in trainer.optimizer.state[parameter].items()}
        for name, parameter in trainer.named.items()
    }
    return WarmStart(
        weights=weights,
        moments=moments,
        activations=_activations(trainer, mix, preset.short_contexts[-1]),
        losses=losses,
        sha256=fingerprint.hex(),
    )


@torch.no_grad()
def _activations(trainer: Trainer, mix: Source, context: int) -> list[Tensor]:
    """[K, V] of each layer over a few short batches, the same on every rank."""
    recorder = InProcess(trainer.preset.model, None, nodes=1)
    recorder.record = True
    sequences = trainer.preset.batch * trainer.preset.context // context
    rows = min(sequences, max(1, _RECORDED_TOKENS // context))
    for number in range(min(_RECORDED_BATCHES, max(1, _RECORDED_TOKENS // (rows * context)))):
        batch = mix.batch("train", trainer.preset.warm_steps + number, sequences, context)
        tokens = torch.from_numpy(batch.tokens[:rows].copy()).to(trainer.device)
        trainer.model.hidden([tokens], [recorder])
    layers = trainer.preset.model.layers
    return [torch.cat(recorder.seen[layer::layers]) for layer in range(layers)]
