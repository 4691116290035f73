"""The training loop of one rank.

It knows its rank, a transport to the others, and an arm: which exchange, codec and synchronisation. It runs the
same way inside an emulated network and under torchrun on real machines:

    torchrun --nproc-per-node 4 -m testbed.trainer --arm latent

Every arm of a comparison starts from the same `WarmStart`: weights, optimiser moments and the activations from
which codecs choose their starting state.
"""

import math
import resource
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed.codecs import Codecs, at_scale, make_codec
from testbed.collector.trace import current as trace
from testbed.collector.trace import span
from testbed.config import Arm, Preset
from testbed.data.batch import Batch
from testbed.data.source import Source
from testbed.errors import RunFailed, UsageError
from testbed.model import Decoder
from testbed.pace import Pace
from testbed.parallel.exchanges import Exchange, InProcess, Unpaced, make_exchange
from testbed.parallel.layout import Layout
from testbed.parallel.sync import all_reduce, flatten, unflatten
from testbed.parallel.transport import Transport
from testbed.records import ValidationSums
from testbed.trainer.numbers import agree, digest, learning_rate
from testbed.trainer.optimizer import AdamW
from testbed.trainer.validation import add_validation, judged
from testbed.trainer.warm_weights import WarmStart
from testbed.trainer.weights import Weights

__all__ = ["StepResult", "Trainer"]

FIRST_BATCH = 1_000_000
"""Of the context-parallel steps: no sequence of the warm start comes again."""
_VALIDATION_BATCH = 8
_VALIDATION_TOKENS = 65536


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step of one rank."""

    loss_sum: float
    """Sum over this rank's counted tokens, in nats."""
    tokens: int
    """This rank's counted tokens."""
    step_seconds: float
    """Without synchronisation."""
    sync_seconds: float
    compute_cpu_seconds: float
    exchange_seconds: float
    """Exposed wait; of a paced step, the whole of its exchanges."""
    exchange_total_seconds: float
    """From posting to arrival, hidden behind computation or not, summed over exchanges."""
    gradient_norm: float
    peak_memory_bytes: int
    """Peak of the process so far, or of the device."""
    overruns: tuple[str, ...]


class Trainer:
    """One arm on one rank."""

    def __init__(
        self,
        preset: Preset,
        arm: Arm,
        mix: Source,
        transport: Transport,
        *,
        seed: int,
        warm: WarmStart | None,
        device: torch.device | None = None,
    ) -> None:
        self.preset, self.arm, self.mix, self.transport = preset, arm, mix, transport
        self.device = device or torch.device("cpu")
        self.seed = seed
        self.rank, self.world = transport.rank, transport.world
        self.index = 0
        """Context-parallel steps done."""
        self.pace: Pace | None = None
        self.layout = Layout(arm.layout, self.world)
        self.model = Decoder(preset.model, seed=seed).to(self.device)
        self.model.recompute = preset.recompute
        layers = preset.model.layers if arm.sends_kv else 0
        self.codecs = Codecs(
            make_codec(
                at_scale(arm.codec, preset),
                preset.model.kv_width,
                layer=layer,
                seed=seed,
                kv_heads=preset.model.kv_heads,
                final=layer == layers - 1,
            )
            for layer in range(layers)
        ).to(self.device)
        self.named: dict[str, Tensor] = {
            **dict(self.model.named_parameters()),
            **{f"codecs.{name}": value for name, value in self.codecs.named_parameters()},
        }
        self.parameters: list[Tensor] = list(self.named.values())
        self.optimizer = AdamW(
            self.parameters, lr=preset.learning_rate, betas=preset.betas, weight_decay=preset.weight_decay
        )
        if warm is not None:
            self._begin_at(warm)
        self.exchange = self._exchange()
        transport.overlap(arm.overlap and self.world > 1)
        self.weights = Weights(self.named, arm, transport)
        if preset.compile:
            for layer in self.model.layers:
                layer.project = torch.compile(layer.project)  # pyrefly: ignore
                layer.feed_forward = torch.compile(layer.feed_forward)  # pyrefly: ignore
        agree(digest([*self.named.values(), *self.codecs.buffers()]), transport, "starting weights")

    def _exchange(self) -> Exchange:
        """The arm's exchange; refuses what cannot be shared out among so many ranks."""
        preset, parts = self.preset, self.preset.accumulate * (2 if self.arm.interleave else 1)
        shared = self.world if self.arm.split == "batch" else 1
        if preset.batch % (shared * parts):
            raise UsageError(
                f"a batch of {preset.batch} sequences cannot be shared out for arm '{self.arm.name}': it takes a "
                f"multiple of {shared * parts} (ranks of split = 'batch', accumulate, 2 to interleave)"
            )
        if self.arm.split == "batch":
            return make_exchange(self.arm, preset.model, [], None)
        self.layout.check(preset.context)
        exchange = make_exchange(self.arm, preset.model, list(self.codecs), self.transport)
        if self.arm.interleave and not exchange.begins_early:
            raise UsageError(
                f"interleave hides an exchange that begins before attention, and '{self.arm.exchange}' travels within "
                "it: leave interleave, or choose another exchange (all-gather, mask-aware)"
            )
        for layer in range(len(self.codecs)):
            exchange.traffic(layer, "forward", 1, preset.context)  # refuses chunks that a codec cannot cut
        return exchange

    def _begin_at(self, warm: WarmStart) -> None:
        self.model.load_state_dict(warm.weights)
        for name, moments in warm.moments.items():
            self.optimizer.state[self.named[name]] = {key: value.clone() for key, value in moments.items()}
        for layer, codec in enumerate(self.codecs):
            block = self.model.layers[layer]
            codec.start(block.key, block.value, warm.activations[layer])
        if self.codecs and self.world > 1:  # rank 0's start for all: another machine's SVD may differ in a bit
            state = [*self.codecs.parameters(), *self.codecs.buffers()]
            if state:
                numbers = flatten(state) if self.rank == 0 else torch.zeros_like(flatten(state))
                unflatten(all_reduce(numbers, self.transport, channel="other"), state)

    def set_pace(self, pace: Pace | None) -> None:
        """Hold the following steps to a target, or to none."""
        self.pace = pace
        self.exchange.pacer = pace or Unpaced()
        self.transport.overlap(self.arm.overlap and self.world > 1 and pace is None)

    def step(self) -> StepResult:
        """One step: forward, backward, gradients together if the arm says so, update."""
        trace.take()
        started, cpu_started = time.perf_counter(), time.process_time()
        if self.pace:
            self.pace.begin()
        early = self.arm.sync == "gradients" and self.pace is None and self.weights.overlapped
        with span("compute"):
            batch = self._batch(self.index)
            rows, columns = self._share(batch)
            loss_sum, tokens = self.learn_from(batch, rows, columns, sum_early=early)
        sync_seconds = self.sync_gradients(begun=early) if self.arm.sync == "gradients" else 0.0
        with span("update"):
            norm = self.update(self.preset.warm_steps + self.index)
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
            exchange_total_seconds=trace.seconds.get("exchange_total", 0.0),
            gradient_norm=norm,
            peak_memory_bytes=self._peak_memory(),
            overruns=tuple(self.pace.overruns) if self.pace else (),
        )

    def _batch(self, index: int) -> Batch:
        return self.mix.batch("train", index + FIRST_BATCH, self.preset.batch, self.preset.context)

    def _share(self, batch: Batch) -> tuple[slice, np.ndarray | slice]:
        """This rank's rows and columns of the batch."""
        sequences, context = batch.tokens.shape
        if self.arm.split == "batch":
            each = sequences // self.world
            return slice(self.rank * each, (self.rank + 1) * each), slice(None)
        return slice(None), self.layout.positions(self.rank, context).numpy()

    def learn_from(
        self, batch: Batch, rows: slice, columns: np.ndarray | slice, *, sum_early: bool = False
    ) -> tuple[float, int]:
        """Gradients of the loss over all ranks' tokens, as far as this rank contributes to it: (loss sum, tokens).

        `sum_early`: they are summed over ranks while the last part's backward pass goes on.
        """
        arrays = [array[rows][:, columns] for array in (batch.tokens, batch.labels, batch.counted)]
        inputs, labels, kept = (torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in arrays)
        documents = torch.from_numpy(batch.documents[rows].astype(np.int64)) if self.preset.document_mask else None
        # Under averaging each rank's gradient stands for the whole batch and is scaled to it. Each is still clipped by
        # its own norm, which is larger than that of their sum: averaging arms clip more steps than summing ones.
        scale = (self.world if self.arm.sync == "average" else 1) / int(batch.counted.sum())
        turns = 2 if self.arm.interleave else 1
        size = len(inputs) // (self.preset.accumulate * turns)
        parts = [slice(i * size, (i + 1) * size) for i in range(self.preset.accumulate * turns)]
        total = 0.0
        for first in range(0, len(parts), turns):
            if sum_early and first + turns >= len(parts):
                self.weights.begin()
            total += self._backward(inputs, labels, kept, documents, parts[first : first + turns], scale)
        if not math.isfinite(total):
            raise RunFailed(f"step {self.index}: the loss on rank {self.rank} is {total}; the run ends here")
        return total, int(kept.sum())

    def _backward(
        self, inputs: Tensor, labels: Tensor, kept: Tensor, documents: Tensor | None, parts: list[slice], scale: float
    ) -> float:
        """Of parts of the batch that take turns: their loss sum."""
        exchanges = [self.exchange.on(None if documents is None else documents[part]) for part in parts]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model.interleaved([inputs[part] for part in parts], exchanges)
        losses = [
            F.cross_entropy(each[kept[part]].float(), labels[part][kept[part]], reduction="sum")
            for each, part in zip(logits, parts, strict=True)
        ]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        (loss * scale).backward()
        return loss.item()

    def sync_gradients(self, *, begun: bool = False) -> float:
        """Sum the gradients over ranks, or wait for the sums that have begun: seconds of waiting."""
        started = time.perf_counter()
        with span("sync"):
            self.weights.sum_gradients(begun=begun, ballast=self._sync_ballast())
            self._wait_modelled_sync(started)
        return time.perf_counter() - started

    def average_weights(self, *, fraction: float = 1.0) -> float:
        """Average the weights over ranks (moments stay); seconds. `fraction` of the target's size is carried."""
        started = time.perf_counter()
        with span("sync"):
            self.weights.average(ballast=self._sync_ballast(fraction))
            for codec in self.codecs:
                codec.after_update()  # means of orthonormal bases are not orthonormal
            self._wait_modelled_sync(started)
        return time.perf_counter() - started

    def _sync_ballast(self, fraction: float = 1.0) -> int:
        if self.pace is None or self.pace.plan.modelled_goodput_bps is not None:
            return 0
        return max(0, round(self.pace.plan.sync_message_bytes * fraction) - self.weights.message_bytes)

    def _wait_modelled_sync(self, started: float) -> None:
        plan = self.pace.plan if self.pace else None
        if plan and plan.modelled_goodput_bps:
            seconds = plan.sync_seconds(plan.modelled_goodput_bps) + 2 * plan.round_trip_seconds
            time.sleep(max(0.0, started + seconds - time.perf_counter()))

    def update(self, step: int) -> float:
        """Clip, AdamW, and what codecs do after it; the gradients' norm."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.preset.clip or math.inf))
        if not math.isfinite(norm):
            raise RunFailed(f"step {self.index}: the gradients' norm on rank {self.rank} is {norm}; the run ends here")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.preset, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for layer, codec in enumerate(self.codecs):
            codec.after_update()
            self._unplug(layer, codec)
        return norm

    def _unplug(self, layer: int, codec: Any) -> None:
        """At the step that the codec's configuration names, if it names one."""
        at = getattr(codec.config.subspace, "unplug_at", None) if codec.config.kind == "subspace" else None
        if at is not None and self.index + 1 == max(1, round(at * self.preset.steps)):
            block = self.model.layers[layer]
            codec.unplug(block.key, block.value)

    def _peak_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def payload_of_step(self, index: int) -> dict[str, int]:
        """Bytes that step `index` hands to the sockets by channel, in closed form: exchanges, ballast, heads,
        gradients. The step matters to a mask-aware exchange only, whose bytes depend on the batch's documents."""
        expected, messages, documents = Counter[str](), 0, None
        if self.preset.document_mask and self.exchange.bytes_follow_documents:
            documents = torch.from_numpy(self._batch(index).documents.astype(np.int64))
        size = self.preset.batch // (self.preset.accumulate * (2 if self.arm.interleave else 1))
        for first in range(0, self.preset.batch, size):
            exchange = self.exchange.on(None if documents is None else documents[first : first + size])
            for layer in range(self.preset.model.layers):
                for direction in ("forward", "backward"):
                    sent = exchange.traffic(layer, direction, size, self.preset.context)
                    expected += sent.payload
                    messages += sent.messages
        others = self.world - 1
        if self.pace and self.arm.exchanges:
            plan = self.pace.plan
            messages = plan.messages_to_a_peer(plan.timed_layers) * others
            if plan.modelled_goodput_bps is None:
                expected["ballast"] = others * plan.bytes_to_a_peer(plan.timed_layers) - sum(expected.values())
        if self.arm.sync == "gradients" and others:
            buckets = self.weights.gradient_messages(overlapped=self.pace is None)
            expected["weights"] = 2 * sum(buckets) * others
            expected["ballast"] += 2 * self._sync_ballast() * others
            messages += 2 * len(buckets) * others
        expected["other"] = messages * self.transport.head_bytes
        return dict(expected)

    @property
    def sync_due(self) -> bool:
        """Whether the weights are to be averaged now."""
        return self.arm.sync == "average" and self.index % self.preset.sync_every == 0

    def monitor(self) -> dict[str, float | list[str]]:
        """What codecs say of themselves, the largest over layers, and how far the replicas had drifted apart."""
        figures: dict[str, float] = {}
        words: dict[str, list[str]] = {}
        for codec in self.codecs:
            for name, value in codec.monitor().items():
                if isinstance(value, int | float):
                    worst = min if name.endswith("_least") else max
                    figures[name] = worst(value, figures.get(name, value))
                else:
                    words.setdefault(name, []).append(value)
        if self.weights.drift is not None:
            figures["replica_drift"] = self.weights.drift
        return {**figures, **words}

    @torch.no_grad()
    def validate(self, *, exact: bool = False) -> ValidationSums:
        """This rank's share of the validation sequences, with all nodes' arithmetic in this process, off the links.

        `exact`: with plain attention instead of what was trained. Valid only while all ranks hold the same weights.
        """
        whole = exact or self.arm.split == "batch"
        exchange = InProcess(
            self.preset.model,
            None if whole else list(self.codecs) or None,
            nodes=self.world,
            ids=self.arm.made_of_ids if not whole else None,
            layout=Layout("contiguous", 1) if whole else self.layout,
        )
        total = ValidationSums(step=self.index)
        batches = -(-self.preset.validation_sequences // _VALIDATION_BATCH)
        for number in range(self.rank, batches, self.world):
            batch = self.mix.batch("validation", number, _VALIDATION_BATCH, self.preset.context)
            documents = torch.from_numpy(batch.documents.astype(np.int64)) if self.preset.document_mask else None
            found = [self._judged(batch, rows, documents, exchange) for rows in self._few(_VALIDATION_BATCH)]
            loss, right = (torch.cat(parts) for parts in zip(*found, strict=True))
            add_validation(total, loss, right, batch, self.layout)
        return total

    def _few(self, sequences: int) -> list[slice]:
        """Rows of a batch, as many at once as memory surely holds."""
        step = max(1, _VALIDATION_TOKENS // self.preset.context)
        return [slice(first, first + step) for first in range(0, sequences, step)]

    def _judged(
        self, batch: Batch, rows: slice, documents: Tensor | None, exchange: InProcess
    ) -> tuple[Tensor, Tensor]:
        tokens, labels = (torch.from_numpy(x[rows].copy()).to(self.device) for x in (batch.tokens, batch.labels))
        (hidden,) = self.model.hidden([tokens], [exchange.on(None if documents is None else documents[rows])])
        loss, right = judged(self.model.head, hidden, labels)
        return loss.cpu(), right.cpu()

    def close(self) -> None:
        """Let go of threads; the transport stays."""
        self.weights.close()
