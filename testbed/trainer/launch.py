"""One arm, one rank, started by torchrun on real machines (or several ranks on one)."""

import json
import os
import socket
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from testbed.collector.metrics import MetricsFile, StepLine, cut_metrics, system_sample
from testbed.config.training import Train, Training, resolve_training
from testbed.data.integrity import check_data
from testbed.data.plugged import check_plugged
from testbed.data.source import open_source
from testbed.errors import PeerLost, RunFailed, UsageError
from testbed.parallel.distributed import Distributed
from testbed.parallel.greeting import Secret, find_secret, listen
from testbed.parallel.transport import Sockets, Transport
from testbed.trainer import checkpoint
from testbed.trainer.loop import Trainer
from testbed.trainer.rendezvous import JOIN_SECONDS, Meeting, first_step, same_training, store_client
from testbed.trainer.session import steps_of
from testbed.trainer.warm import warm_start
from testbed.trainer.watchdog import Clock, Watchdog

__all__ = ["train"]

_PRINT_EVERY = 10


@dataclass
class _Progress:
    """What this rank is at, for whoever must say where it was lost."""

    where: str


def train(given: Train) -> int:
    """Train to the end: metrics into `--out`, a JSON line every few steps to the terminal; 0 when done."""
    if "RANK" not in os.environ:
        raise UsageError(
            "no RANK is set: start it with torchrun, as in: torchrun --nproc-per-node 4 -m testbed.trainer"
        )
    training = resolve_training(given)
    preset, arm = training.resolved_preset(), training.resolved_arm()
    check_data(preset.data, preset.model)
    check_plugged(preset.data, preset.model)
    secret = find_secret(given.secret_file)
    device = _device()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    short = preset.fewest_short
    if short < world:
        raise UsageError(f"{world} ranks cannot share the {short} short sequences of a warm-start step: start {short}")
    out = Path(training.out)
    state = _Progress("meeting the others")
    logs = str(out / "metrics" / "rank{rank}.jsonl")
    patience, most = Clock(rank, lambda: state.where), JOIN_SECONDS + training.silence
    patience.expect(most, f"no store, through which the ranks meet, has answered for {most:g} s")
    meeting, client = Meeting(rank, world), store_client()
    patience.close()
    with Watchdog(client, rank, world, silence_seconds=training.silence, where=lambda: state.where, logs=logs):
        step = first_step(meeting, out / "checkpoints", resume=given.resume)
        mix = open_source(preset.data, seed=training.seed, chunks=preset.task_chunks, context=preset.context)
        same_training(meeting, checkpoint.identity(preset, arm, training.seed, mix.sha256))
        transport = _transport(training.transport, meeting, device, secret)
        try:
            warm, clock = None, 0.0
            if step is None:
                state.where = "warm start"
                warm = warm_start(preset, mix, transport, seed=training.seed, device=device)
            trainer = Trainer(preset, arm, mix, transport, seed=training.seed, warm=warm, device=device)
            if step is not None:
                clock = checkpoint.restore(trainer, out / "checkpoints", step)
                meeting.saved(step)
            _loop(trainer, training, meeting, state, clock)
        except PeerLost as error:
            raise RunFailed(f"{state.where}: {error}; logs: {logs.format(rank='*')}") from None
        transport.close()
    return 0


def _loop(trainer: Trainer, training: Training, meeting: Meeting, state: _Progress, clock: float) -> None:
    """Steps, averagings, validations, checkpoints; `clock` is what the steps so far have taken."""
    preset, out = trainer.preset, Path(training.out)
    cut_metrics(out, trainer.rank, trainer.index)
    metrics = MetricsFile(out, trainer.rank)
    state.where = f"step {trainer.index}"
    for taken in steps_of(trainer):
        result = taken.result
        clock += result.step_seconds + result.sync_seconds + taken.averaging_seconds
        line: StepLine = {
            "rank": trainer.rank,
            "step": trainer.index,
            "time_seconds": clock,
            "loss": result.loss_sum / max(1, result.tokens),
            "step_seconds": result.step_seconds,
            "payload_bytes": dict(Counter(taken.payload) + Counter(taken.averaging_payload)),
        }
        own = (*line, "loss_sum", "overruns")
        metrics.write(line, **{key: value for key, value in asdict(result).items() if key not in own})
        if trainer.index % _PRINT_EVERY == 0 or trainer.index == preset.steps:
            metrics.write({"step": trainer.index}, **system_sample(), **trainer.monitor())
            shown = {key: value for key, value in line.items() if key in ("rank", "step", "loss", "step_seconds")}
            sys.stdout.write(json.dumps(shown) + "\n")  # in one piece: ranks share the terminal
            sys.stdout.flush()
        if taken.to_validate:
            for name, exact in (("validation", False), ("validation_exact", True)):
                sums = asdict(trainer.validate(exact=exact))
                metrics.write({"step": sums.pop("step")}, **{name: sums})
        every = training.checkpoint_every
        if taken.last or (every is not None and trainer.index % every == 0):
            checkpoint.save(trainer, out / "checkpoints", clock=clock)
            checkpoint.prune(out / "checkpoints", trainer.rank, meeting.saved(trainer.index))
        state.where = f"step {trainer.index}"
    metrics.close()
    trainer.close()


def _device() -> torch.device:
    """This rank's GPU where there is one (shared if there are more ranks than GPUs), else one thread of the CPU."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _transport(wanted: str, meeting: Meeting, device: torch.device, secret: Secret | None) -> Transport:
    """NCCL where ranks have GPUs of their own; our own sockets otherwise, unless told. All ranks alike, or none."""
    local, count = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    own = "sockets"
    if wanted == "distributed" or (wanted == "auto" and device.type == "cuda" and local <= count):
        own = "nccl" if device.type == "cuda" else "gloo"
    choices = meeting.told("transport", own)
    for rank, choice in enumerate(choices):
        if choice != choices[0]:
            raise UsageError(
                f"rank 0 would exchange over {choices[0]} and rank {rank} over {choice}: "
                "give every rank --transport sockets"
            )
    _check_secret(meeting, own, secret)
    if own != "sockets":
        dist.init_process_group(own, store=meeting.store, rank=meeting.rank, world_size=meeting.world)
        return Distributed(device)
    with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))) as probe:
        address = probe.getsockname()[0]  # the address that faces the others
    listener = listen(address, backlog=meeting.world)
    told = [text.split() for text in meeting.told("address", f"{address} {listener.getsockname()[1]}")]
    addresses = [(host, int(port)) for host, port in told]
    return Sockets.connect(meeting.rank, addresses, listener=listener, secret=secret)


def _check_secret(meeting: Meeting, transport: str, secret: Secret | None) -> None:
    """All have one or none, which is said; whether it is the same they prove to each other, not here."""
    if secret is not None and transport != "sockets":
        raise UsageError(f"a secret was given, and {transport} cannot check it: give every rank --transport sockets")
    have = "a secret" if secret is not None else "none"
    for rank, theirs in enumerate(meeting.told("secret", have)):
        if theirs != have:
            raise UsageError(
                f"rank {meeting.rank} has {have} and rank {rank} {theirs}: give every rank the same --secret-file"
            )
    if secret is None and meeting.world > 1 and meeting.rank == 0:
        sys.stderr.write(
            "testbed: ranks are not authenticated: whoever reaches their ports can take part. Give every rank the same "
            "--secret-file, or keep the network private (docs/training.md).\n"
        )
