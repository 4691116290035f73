"""Cells that start from the same warm start, learned by ranks that are threads of this process, over loopback.

    python -m testbed.learn.worker          (started by `testbed learn`)

The order comes as a JSON line on standard input, what happens leaves as JSON lines on standard output; when standard
input ends, so does this process. Threads and not processes, because they take no more processor time (for the preset
`quick` with the codec `best` 0.160 s a step against 0.170 s), start in no time, and share the batches they read.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from pydantic import JsonValue

from testbed.child import Message, Reply, answering, ending_with_parent
from testbed.codecs import Shape
from testbed.config import Arm, Preset, parse
from testbed.data.batch import Batch, Split
from testbed.data.source import Source, open_source
from testbed.driver.combine import combine_validations
from testbed.parallel.threads import on_ranks
from testbed.parallel.transport import Sockets
from testbed.records import LearnedCell, LearnedResult, Place, ValidationSums, received, write_json
from testbed.rundir.identity import check_host, host_content
from testbed.trainer import Trainer, WarmStart, steps_of, warm_start

__all__ = ["Shared", "learn_cell", "warm_up"]

_PROGRESS_EVERY = 10
_KEPT_BYTES = 256 << 20
_COMPARED_STEPS = 24
"""As many as are ever timed on a link: by rank, for there they must be the same to the last bit."""


class Shared:
    """A source whose batches are made once for all ranks, and for all arms while there is room."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.sha256, self.vocabulary = source.sha256, source.vocabulary
        self._made: dict[tuple[Split, int, int, int], Batch] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:
        """The batch of `step`; nobody may write into it."""
        key = (split, step, sequences, context)
        with self._lock:
            if key not in self._made:
                batch = self._made[key] = self.source.batch(*key)
                self._bytes += sum(array.nbytes for array in vars(batch).values())
                while self._bytes > _KEPT_BYTES and len(self._made) > 1:
                    oldest = self._made.pop(next(iter(self._made)))
                    self._bytes -= sum(array.nbytes for array in vars(oldest).values())
            return self._made[key]


def warm_up(
    preset: Preset, mix: Source, *, seed: int, nodes: int, progress: Callable[[int], None] = lambda _: None
) -> list[WarmStart]:
    """The warm start of every arm of a group, by rank."""

    def one(transport: Sockets) -> WarmStart:
        first = transport.rank == 0
        return warm_start(preset, mix, transport, seed=seed, progress=lambda done, _: progress(done) if first else None)

    return on_ranks(nodes, one)


def learn_cell(
    preset: Preset,
    arm: Arm,
    mix: Source,
    warm: list[WarmStart],
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> LearnedResult:
    """All steps of one arm: what it learned, what it would have sent, how long it took here."""
    started, cpu = time.perf_counter(), time.process_time()

    def one(transport: Sockets) -> _OfRank:
        trainer = Trainer(preset, arm, mix, transport, seed=seed, warm=warm[transport.rank])
        try:
            return _learn(trainer, progress if transport.rank == 0 else lambda _: None)
        finally:
            trainer.close()

    ranks = on_ranks(len(warm), one)
    first = ranks[0]
    return LearnedResult(
        corpus_sha256=mix.sha256,
        warm_sha256=warm[0].sha256,
        losses=tuple(
            round(sum(loss for loss, _ in step) / max(1, sum(tokens for _, tokens in step)), 6)
            for step in zip(*(rank.losses for rank in ranks), strict=True)
        ),
        rank_losses=[[[*each] for each in rank.losses[:_COMPARED_STEPS]] for rank in ranks],
        validations=tuple(combine_validations(each) for each in zip(*(r.validations for r in ranks), strict=True)),
        validation_exact=combine_validations([rank.exact for rank in ranks]),
        drift=tuple(first.drift),
        clipped=sum(rank.clipped for rank in ranks) / len(ranks),
        bytes_per_token_layer=first.bytes_per_token_layer,
        payload_bytes_per_step=first.payload_bytes_per_step,
        sync_bytes_each=first.sync_bytes_each,
        codec=cast(dict[str, JsonValue], first.codec),
        parameters=first.parameters,
        seconds=round(time.perf_counter() - started, 3),
        cpu_seconds=round(time.process_time() - cpu, 3),
    )


@dataclass(frozen=True, kw_only=True)
class _OfRank:
    """What one rank's steps did."""

    losses: list[tuple[float, int]]
    validations: list[ValidationSums]
    exact: ValidationSums
    drift: list[tuple[int, float]]
    clipped: float
    bytes_per_token_layer: dict[str, float]
    payload_bytes_per_step: dict[str, int]
    sync_bytes_each: int
    codec: dict[str, float | list[str]]
    parameters: int


def _learn(trainer: Trainer, progress: Callable[[int], None]) -> _OfRank:
    """One rank's steps, averagings and validations."""
    preset, arm = trainer.preset, trainer.arm
    losses: list[tuple[float, int]] = []
    drift: list[tuple[int, float]] = []
    validations, clipped = [trainer.validate()], 0
    for taken in steps_of(trainer):
        losses.append((taken.result.loss_sum, taken.result.tokens))
        clipped += taken.result.gradient_norm > preset.clip > 0
        if taken.averaged:
            drift.append((trainer.index, trainer.weights.drift or 0.0))  # one replica has none
        if taken.to_validate:
            validations.append(trainer.validate())
        if taken.last or trainer.index % _PROGRESS_EVERY == 0:
            progress(trainer.index)
    return _OfRank(
        losses=losses,
        validations=validations,
        exact=trainer.validate(exact=True),
        drift=drift,
        clipped=clipped / preset.steps,
        bytes_per_token_layer=bytes_per_token_layer(trainer),
        payload_bytes_per_step=trainer.payload_of_step(0),
        sync_bytes_each=2 * trainer.weights.message_bytes * (trainer.world - 1) if arm.sync == "average" else 0,
        codec={name: value for name, value in trainer.monitor().items() if name != "replica_drift"},
        parameters=sum(parameter.numel() for parameter in trainer.parameters),
    )


def bytes_per_token_layer(trainer: Trainer) -> dict[str, float]:
    """What one token costs to one peer, the mean over layers, by direction; 0 where nothing is exchanged."""
    preset = trainer.preset
    tokens = preset.context // trainer.world // trainer.layout.per_rank
    shape = Shape(batch=preset.batch * trainer.layout.per_rank, tokens=tokens)
    codecs, layers, found = list(trainer.codecs), preset.model.layers, {}
    for direction in ("forward", "backward"):
        if codecs:
            total = sum(sum(codec.payload(shape, direction).values()) for codec in codecs)
        else:  # token ids, or nothing
            sent = [trainer.exchange.traffic(layer, direction, preset.batch, preset.context) for layer in range(layers)]
            total = sum(sum(each.payload.values()) for each in sent) / max(1, trainer.world - 1)
        found[direction] = total / (layers * shape.batch * tokens)
    return found


def main() -> None:
    """Learn what the order says; a cell's results are on disk, by rename, before they are reported."""
    torch.set_num_threads(1)
    with answering() as reply:
        order = json.loads(sys.stdin.readline())
        with ending_with_parent():
            _serve(order, reply)


def _serve(order: Message, reply: Reply) -> None:
    preset = parse(Preset, order["preset"], "preset")
    mix = Shared(open_source(preset.data, seed=order["seed"], chunks=preset.task_chunks, context=preset.context))
    cell = ""
    try:
        arms = {name: parse(Arm, arm, "arm") for name, arm in order["arms"].items()}
        check_host(order["host"], host_content(preset.data, arms.values()))
        warm = warm_up(
            preset, mix, seed=order["seed"], nodes=order["nodes"], progress=lambda done: reply({"warm_steps": done})
        )
        for cell, arm in arms.items():
            found = learn_cell(
                preset,
                arm,
                mix,
                warm,
                seed=order["seed"],
                progress=lambda done: reply({"steps": done}),
            )
            about = order["about"][cell]
            place = received(Place, about.pop("environment"), "the order")
            write_json(Path(order["folder"]) / f"{cell}.json", LearnedCell(**vars(found), **about, environment=place))
            reply({"done": cell, **asdict(found.validations[-1]), "seconds": found.seconds})
    except Exception as error:  # whatever it is, the parent must hear which cell it was
        import traceback

        traceback.print_exc()
        reply({"failed": cell, "why": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
