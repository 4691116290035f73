"""The training loop of one rank.

It knows its rank, a transport to the others, and an arm: which exchange, codec and synchronisation. It runs the
same way inside an emulated network and under torchrun on real machines:

    torchrun --nproc-per-node 4 -m testbed train --arm latent

Every arm of a comparison starts from the same `WarmStart`: weights, optimiser moments and the activations from
which codecs choose their starting state.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed.codecs import Shape, make_codec
from testbed.collector.trace import current as trace
from testbed.collector.trace import span
from testbed.config import Arm, Preset
from testbed.data.recall import Batch, RecallMix
from testbed.errors import RunFailed
from testbed.model import Decoder
from testbed.pace import Pace
from testbed.parallel.exchange import AllGather, InProcess, Local, Unpaced
from testbed.parallel.sync import all_reduce, all_reduce_bytes, average, flatten, unflatten
from testbed.parallel.transport import HEAD_BYTES, Transport

__all__ = ["StepResult", "Trainer", "Validation", "WarmStart", "warm_start"]

_FIRST_BATCH = 1_000_000  # of the context-parallel steps: no sequence of the warm start comes again
_RECORDED_BATCHES = 8
_VALIDATION_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What every arm starts from."""

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    """Optimiser state by parameter name."""
    activations: list[Tensor]
    """Of each layer, (tokens, 2·d_kv): [K, V] on short contexts."""
    losses: list[float]
    """Of each step, this rank's."""
    sha256: str
    """Of the weights."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step of one rank."""

    loss_sum: float
    """Over this rank's counted tokens, in nats."""
    tokens: int
    """This rank's counted tokens."""
    step_seconds: float
    """Without synchronisation."""
    sync_seconds: float
    compute_cpu_seconds: float
    exchange_seconds: float
    """Exposed wait; of a paced step, the whole of its exchanges."""
    overruns: tuple[str, ...]


@dataclass(kw_only=True)
class Validation:
    """Sums over validation tokens, in nats; they add up over ranks."""

    loss: float = 0.0
    tokens: int = 0
    text_loss: float = 0.0
    text_tokens: int = 0
    remote_loss: float = 0.0
    remote_tokens: int = 0
    remote_right: int = 0


class Trainer:
    """One arm on one rank."""

    def __init__(
        self,
        preset: Preset,
        arm: Arm,
        mix: RecallMix,
        transport: Transport,
        *,
        seed: int,
        warm: WarmStart | None,
        device: torch.device | None = None,
    ) -> None:
        self.preset, self.arm, self.mix, self.transport = preset, arm, mix, transport
        self.device = device or torch.device("cpu")
        self.rank, self.world = transport.rank, transport.world
        self.index = 0
        """Context-parallel steps done."""
        self.pace: Pace | None = None
        self.model = Decoder(preset.model, seed=seed).to(self.device)
        self.codecs = nn.ModuleList(
            make_codec(arm.codec, preset.model.kv_width, layer=layer, seed=seed)
            for layer in range(preset.model.layers if arm.exchange != "local" else 0)
        ).to(self.device)
        self.named = {
            **dict(self.model.named_parameters()),
            **{f"codecs.{name}": value for name, value in self.codecs.named_parameters()},
        }
        self.parameters: list[Tensor] = list(self.named.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=preset.learning_rate,
            betas=preset.betas,
            weight_decay=preset.weight_decay,
            fused=True,
        )
        if warm is not None:
            self._begin_at(warm)
        if arm.exchange == "local":
            self.exchange: AllGather | Local = Local(preset.model, rank=self.rank)
        else:
            self.exchange = AllGather(preset.model, list(self.codecs), transport)  # pyrefly: ignore
        agree(digest([*self.named.values(), *self.codecs.buffers()]), transport, "starting weights")

    def _begin_at(self, warm: WarmStart) -> None:
        self.model.load_state_dict(warm.weights)
        for name, moments in warm.moments.items():
            self.optimizer.state[self.named[name]] = {key: value.clone() for key, value in moments.items()}
        for layer, codec in enumerate(self.codecs):
            block = self.model.layers[layer]
            codec.start(block.key, block.value, warm.activations[layer])  # pyrefly: ignore
        if self.codecs and self.world > 1:  # rank 0's start for all: another machine's SVD may differ in a bit
            state = [*self.codecs.parameters(), *self.codecs.buffers()]
            if state:
                numbers = flatten(state) if self.rank == 0 else torch.zeros_like(flatten(state))
                unflatten(all_reduce(numbers, self.transport, channel="other"), state)

    def set_pace(self, pace: Pace | None) -> None:
        """Hold the following steps to a target, or to none."""
        self.pace = pace
        self.exchange.pacer = pace or Unpaced()

    def step(self) -> StepResult:
        """One step: forward, backward, gradients together if the arm says so, update."""
        trace.take()
        started, cpu_started = time.perf_counter(), time.process_time()
        if self.pace:
            self.pace.begin()
        with span("compute"):
            batch = self.mix.batch("train", self.index + _FIRST_BATCH, self.preset.batch, self.preset.context)
            chunk = self._own_chunk(batch)
            loss_sum, tokens = self._backward(*chunk, counted=int(batch.counted.sum()))
        sync_seconds = self._sync_gradients() if self.arm.sync == "gradients" else 0.0
        with span("update"):
            self._update(self.preset.warm_steps + self.index)
        if self.pace:
            self.pace.shift(sync_seconds)
            self.pace.end()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        self.index += 1
        return StepResult(
            loss_sum=loss_sum,
            tokens=tokens,
            step_seconds=seconds - sync_seconds,
            sync_seconds=sync_seconds,
            compute_cpu_seconds=cpu_seconds,
            exchange_seconds=self.pace.exchange_seconds if self.pace else trace.seconds.get("exchange", 0.0),
            overruns=tuple(self.pace.overruns) if self.pace else (),
        )

    def _own_chunk(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.preset.context // self.world
        own = slice(self.rank * tokens, (self.rank + 1) * tokens)
        arrays = (batch.tokens[:, own], batch.labels[:, own], batch.counted[:, own])
        inputs, labels, counted = (torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in arrays)
        return inputs, labels, counted

    def _backward(self, inputs: Tensor, labels: Tensor, kept: Tensor, *, counted: int) -> tuple[float, int]:
        """Gradients of the loss over all nodes' tokens, as far as this rank contributes to it."""
        logits = self.model(inputs, self.exchange)
        loss = F.cross_entropy(logits[kept], labels[kept], reduction="sum")
        # Under averaging each rank's gradient stands for the whole batch: scaled to it, so that clipping is the same.
        scale = self.world if self.arm.sync == "average" else 1
        (loss * (scale / counted)).backward()
        return loss.item(), int(kept.sum())

    def _sync_gradients(self) -> float:
        started = time.perf_counter()
        with span("sync"):
            gradients = [_gradient(parameter) for parameter in self.parameters]
            flat = flatten(gradients)
            unflatten(all_reduce(flat, self.transport, ballast=self._sync_ballast()), gradients)
            self._wait_modelled_sync(started)
        return time.perf_counter() - started

    def average_weights(self, *, fraction: float = 1.0) -> float:
        """Average all parameters over ranks (moments stay); seconds. `fraction` of the target's size is carried."""
        started = time.perf_counter()
        with span("sync"):
            mean = average(flatten(self.parameters), self.transport, ballast=self._sync_ballast(fraction))
            unflatten(mean, self.parameters)
            self._wait_modelled_sync(started)
        return time.perf_counter() - started

    def _sync_ballast(self, fraction: float = 1.0) -> int:
        if self.pace is None or self.pace.plan.modelled_goodput_bps is not None:
            return 0
        own = all_reduce_bytes(sum(p.numel() for p in self.parameters), self.world, 4)
        return max(0, round(self.pace.plan.sync_message_bytes * fraction) - own)

    def _wait_modelled_sync(self, started: float) -> None:
        plan = self.pace.plan if self.pace else None
        if plan and plan.modelled_goodput_bps:
            seconds = plan.sync_seconds(plan.modelled_goodput_bps) + 2 * plan.round_trip_seconds
            time.sleep(max(0.0, started + seconds - time.perf_counter()))

    def _update(self, step: int) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.preset.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.preset, step)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def payload_of_step(self) -> dict[str, int]:
        """Bytes that one step hands to the sockets by channel, in closed form: exchanges, ballast, heads, gradients."""
        others, expected = self.world - 1, Counter[str]()
        shape = Shape(batch=self.preset.batch, tokens=self.preset.context // self.world)
        for codec in self.codecs:
            for channel, count in codec.payload(shape).items():  # pyrefly: ignore
                if channel == "kv":
                    expected["kv_forward"] += count
                    expected["kv_backward"] += count
                else:
                    expected[channel] += 2 * count
        messages = 2 * len(self.codecs)
        if self.pace and self.codecs:
            messages = 2 * self.pace.plan.timed_layers
            if self.pace.plan.modelled_goodput_bps is None:
                expected["ballast"] = messages * self.pace.plan.message_bytes - sum(expected.values())
        if self.arm.sync == "gradients":
            numbers = sum(parameter.numel() for parameter in self.parameters)
            expected["weights"] = 2 * all_reduce_bytes(numbers, self.world, 4)
            expected["ballast"] += 2 * self._sync_ballast()
            messages += 2
        expected["other"] = messages * HEAD_BYTES
        return {channel: count * others for channel, count in expected.items()}

    @property
    def sync_due(self) -> bool:
        """Whether the weights are to be averaged now."""
        return self.arm.sync == "average" and self.index % self.preset.sync_every == 0

    @torch.no_grad()
    def validate(self) -> Validation:
        """This rank's share of the validation sequences, with all nodes' arithmetic in this process, off the links.

        Valid only while all ranks hold the same weights.
        """
        codecs = list(self.codecs) if self.arm.exchange != "local" else None
        exchange = InProcess(self.preset.model, codecs, nodes=self.world)  # pyrefly: ignore
        total = Validation()
        batches = -(-self.preset.validation_sequences // _VALIDATION_BATCH)
        for number in range(self.rank, batches, self.world):
            batch = self.mix.batch("validation", number, _VALIDATION_BATCH, self.preset.context)
            logits = self.model(torch.from_numpy(batch.tokens.copy()).to(self.device), exchange).cpu()
            _add_validation(total, logits, batch, self.preset.context // self.world)
        return total


def _add_validation(total: Validation, logits: Tensor, batch: Batch, chunk: int) -> None:
    labels = torch.from_numpy(batch.labels.copy())
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    position = np.arange(batch.labels.shape[1])[None]
    remote = torch.from_numpy((batch.evidence >= 0) & (batch.evidence // chunk < position // chunk))
    counted = torch.from_numpy(batch.counted.copy())
    text = counted & torch.from_numpy(batch.evidence < 0)
    total.loss += loss[counted].double().sum().item()
    total.tokens += int(counted.sum())
    total.text_loss += loss[text].double().sum().item()
    total.text_tokens += int(text.sum())
    total.remote_loss += loss[remote].double().sum().item()
    total.remote_tokens += int(remote.sum())
    total.remote_right += int((logits.argmax(-1) == labels)[remote].sum())


def warm_start(
    preset: Preset,
    mix: RecallMix,
    transport: Transport,
    *,
    seed: int,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> WarmStart:
    """Uncompressed steps on short contexts, each rank on sequences of its own, gradients all-reduced every step."""
    arm = Arm(name="warm start", exchange="local", sync="gradients", link="fast")
    trainer = Trainer(preset, arm, mix, transport, seed=seed, warm=None, device=device)
    trainer.exchange = Local(preset.model)  # every sequence starts at position 0, whichever rank reads it
    context, sequences = preset.context // preset.task_chunks, preset.batch * preset.task_chunks
    losses = []
    for step in range(preset.warm_steps):
        batch = mix.batch("train", step, sequences, context)
        rows = slice(trainer.rank * sequences // trainer.world, (trainer.rank + 1) * sequences // trainer.world)
        arrays = (batch.tokens, batch.labels, batch.counted)
        own = (torch.from_numpy(x[rows].copy()).to(trainer.device) for x in arrays)
        loss, tokens = trainer._backward(*own, counted=int(batch.counted.sum()))
        trainer._sync_gradients()
        trainer._update(step)
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
        activations=_activations(trainer, mix, context, sequences),
        losses=losses,
        sha256=fingerprint.hex(),
    )


@torch.no_grad()
def _activations(trainer: Trainer, mix: RecallMix, context: int, sequences: int) -> list[Tensor]:
    """[K, V] of each layer over a few short batches, the same on every rank."""
    recorder = InProcess(trainer.preset.model, None, nodes=1)
    recorder.record = True
    for number in range(_RECORDED_BATCHES):
        batch = mix.batch("train", trainer.preset.warm_steps + number, sequences, context)
        trainer.model(torch.from_numpy(batch.tokens.copy()).to(trainer.device), recorder)
    layers = trainer.preset.model.layers
    return [torch.cat(recorder.seen[layer::layers]) for layer in range(layers)]


def learning_rate(preset: Preset, step: int) -> float:
    """Linear warm-up, then linear decay to the floor, over warm start and context-parallel steps together."""
    total, warm_up = preset.warm_steps + preset.steps, preset.learning_rate_warmup
    decayed = 1 - (1 - preset.learning_rate_floor) * (step - warm_up) / max(1, total - warm_up)
    return preset.learning_rate * min((step + 1) / warm_up, decayed)


def digest(tensors: Iterable[Tensor]) -> bytes:
    """SHA-256 over the bits of tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.digest()


def agree(fingerprint: bytes, transport: Transport, what: str) -> None:
    """Stop unless every rank holds the same bits."""
    if transport.world == 1:
        return
    message = torch.frombuffer(bytearray(fingerprint), dtype=torch.uint8)
    outgoing = [message if other != transport.rank else None for other in range(transport.world)]
    received = transport.exchange(outgoing, {"other": len(fingerprint) * (transport.world - 1)}).wait()
    differing = [
        rank for rank, theirs in enumerate(received) if theirs is not None and not torch.equal(theirs.cpu(), message)
    ]
    if differing:
        raise RunFailed(f"rank {transport.rank} holds other {what} than rank {differing[0]}")


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
