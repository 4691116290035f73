"""A rank that stays alive across the arms of a comparison and takes orders.

Orders come as JSON lines on standard input, answers leave as JSON lines on standard output; neither touches the
emulated network. What else the rank prints goes to its log, with what it says on standard error.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from pydantic import JsonValue

from emulation.kernel.counters import WireBytes, WireCounter
from emulation.shaping.delays import DelayCounter
from emulation.spec.network import TCP_IP_HEADER_BYTES
from testbed.child import Reply, answering
from testbed.collector.host_load import Fidelity, Pulse, judge
from testbed.collector.ledger import (
    SocketBytes,
    balance,
    interface_wire_bytes,
    predicted_wire_bytes,
    settle,
    socket_bytes,
)
from testbed.collector.metrics import MetricsFile, StepLine, system_sample
from testbed.collector.trace import current as trace
from testbed.config import Arm, Preset, parse
from testbed.data.source import Source, open_source
from testbed.driver.combine import combine_validations
from testbed.errors import PeerLost
from testbed.pace import Pace, Plan
from testbed.parallel.transport import Sockets
from testbed.records import (
    Begun,
    Finished,
    FirstLosses,
    Prepared,
    RankLearned,
    RankStep,
    RankSync,
    Spent,
    StepEntry,
    SyncEntry,
    ValidationSums,
    WarmedUp,
)
from testbed.rundir.directory import interpreter
from testbed.rundir.identity import program_sha256
from testbed.trainer import StepResult, Trainer, WarmStart, check_payload, steps_of, warm_start

__all__ = ["serve"]

_PROGRESS_EVERY = 10
_BEAT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class _Meter:
    """What all counters of a node showed at one moment."""

    sent: Counter[str]
    sockets: SocketBytes
    wire: WireBytes
    pulse: Pulse
    at_seconds: float


class Rank:
    """The state between orders."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.rank = trace.rank = int(os.environ["RANK"])
        trace.recording = True
        port = int(os.environ["MASTER_PORT"])
        self.addresses = [(address, port) for address in os.environ["NODE_ADDRS"].split(",")]
        self.transport = Sockets.connect(self.rank, self.addresses)
        counter = json.loads(os.environ["TESTBED_COUNTER"])
        self.wire = WireCounter(counter)
        self.fidelity = Fidelity(DelayCounter(counter.get("delays")).read)
        self.segment_bytes = counter["mtu"] - TCP_IP_HEADER_BYTES
        self.preset: Preset
        self.mix: Source
        self.seed = 0
        self.warm: WarmStart | None = None
        self.trainer: Trainer
        self.metrics: MetricsFile | None = None
        self.folder = Path()
        self.phase = ""
        self.clock_seconds = 0.0
        self.ledger: list[StepEntry | SyncEntry] = []

    # -- orders, one method each

    def prepare(self, preset: JsonValue, seed: int) -> Prepared:
        """Read the data."""
        self.preset, self.seed = parse(Preset, preset, "preset"), seed
        self.mix = open_source(self.preset.data, seed=seed, chunks=self.preset.task_chunks, context=self.preset.context)
        return Prepared(corpus_sha256=self.mix.sha256, program_sha256=program_sha256(), interpreter=interpreter())

    def warm_up(self, folder: str) -> WarmedUp:
        """The warm start that all arms share; rank 0 keeps its weights on disk."""
        started = time.perf_counter()
        self.warm = warm_start(self.preset, self.mix, self.transport, seed=self.seed, progress=self._progress)
        if self.rank == 0:
            from safetensors.torch import save_file

            Path(folder).mkdir(parents=True, exist_ok=True)
            save_file(self.warm.weights, Path(folder) / "warm_start.safetensors")
        seconds = time.perf_counter() - started
        return WarmedUp(seconds=seconds, sha256=self.warm.sha256, losses=tuple(self.warm.losses))

    def reconnect(self) -> None:
        """New connections: the old ones' windows and round trips belong to links that are no more."""
        self.transport.close()
        self.transport = Sockets.connect(self.rank, self.addresses)

    def begin(self, arm: JsonValue, plan: JsonValue, folder: str, phase: str) -> Begun:
        """A fresh trainer of this arm at the warm start."""
        self.finish()
        self.folder, self.phase = Path(folder), phase
        self.trainer = Trainer(
            self.preset, parse(Arm, arm, "arm"), self.mix, self.transport, seed=self.seed, warm=self.warm
        )
        if plan is not None:
            paced = Pace(parse(Plan, plan, "plan"), self.transport, model_layers=self.preset.model.layers)
            self.trainer.set_pace(paced)
        self.metrics = MetricsFile(self.folder, self.rank)
        self.clock_seconds, self.ledger = 0.0, []
        return Begun(parameters=sum(parameter.numel() for parameter in self.trainer.parameters))

    def first_losses(self, steps: int) -> FirstLosses:
        """Of so many steps, at this machine's own speed: what steps on a link are held against."""
        taken = islice(steps_of(self.trainer), steps)
        return FirstLosses(losses=[[each.result.loss_sum, each.result.tokens] for each in taken])

    def learn(self) -> RankLearned:
        """All steps, at this machine's own speed; the loss is what is kept."""
        losses, validations = [], []
        for taken in steps_of(self.trainer):
            losses.append([taken.result.loss_sum, taken.result.tokens])
            self._write(taken.result, taken.payload)
            if taken.to_validate:
                validations.append(self.validate())
            self._progress(self.trainer.index, self.preset.steps)
        return RankLearned(losses=losses, validations=tuple(validations))

    def step(self) -> RankStep:
        """One step whose time counts: settled, balanced, written down."""
        expected = self.trainer.payload_of_step(self.trainer.index)  # asked first: at its end a codec may be unplugged
        meter = self._meter()
        result = self.trainer.step()
        spent = self._spent(meter, result.overruns)
        check_payload(spent.payload_bytes, expected)
        self.ledger.append(StepEntry(step=self.trainer.index - 1, **vars(spent)))
        self._write(result, spent.payload_bytes, spent)
        return RankStep(
            step_seconds=result.step_seconds,
            compute_seconds=result.step_seconds - result.exchange_seconds,
            compute_cpu_seconds=result.compute_cpu_seconds,
            exchange_seconds=result.exchange_seconds,
            sync_seconds=result.sync_seconds,
            loss_sum=result.loss_sum,
            tokens=result.tokens,
            exchanges=tuple(self.trainer.pace.exchanges) if self.trainer.pace else (),
            spent=spent,
        )

    def average(self, fraction: float) -> RankSync:
        """Average the weights, with `fraction` of the target's bytes on the wire."""
        meter = self._meter()
        seconds = self.trainer.average_weights(fraction=fraction)
        spent = self._spent(meter)
        self.clock_seconds += seconds
        self.ledger.append(SyncEntry(after_step=self.trainer.index - 1, fraction=fraction, **vars(spent)))
        return RankSync(seconds=seconds, spent=spent)

    def validate(self) -> ValidationSums:
        """Sums over this rank's share of the validation sequences."""
        sums = self.trainer.validate()
        if self.metrics is not None and sums.tokens:
            self.metrics.write({"phase": self.phase}, **asdict(combine_validations([sums])))
        return sums

    def finish(self) -> Finished:
        """Write what is still in memory of the arm under way."""
        if self.metrics is not None:
            self.metrics.close()
            self.metrics = None
            trace.write(self.folder / "trace" / f"rank{self.rank}.json")
            trace.events.clear()
            self.trainer.close()
        return Finished(ledger=tuple(self.ledger))

    # -- what they share

    def _write(self, result: StepResult, payload: dict[str, int], spent: Spent | None = None) -> None:
        """A line of the metrics; `spent`: what was counted of a step on a link."""
        self.clock_seconds += result.step_seconds + result.sync_seconds
        line: StepLine = {
            "step": self.trainer.index - 1,
            "phase": self.phase,
            "time_seconds": self.clock_seconds,
            "loss": result.loss_sum / max(1, result.tokens),
            "tokens": result.tokens,
            "step_seconds": result.step_seconds,
            "compute_seconds": result.step_seconds - result.exchange_seconds,
            "compute_cpu_seconds": result.compute_cpu_seconds,
            "exchange_seconds": result.exchange_seconds,
            "exchange_total_seconds": result.exchange_total_seconds,
            "sync_seconds": result.sync_seconds,
            "gradient_norm": result.gradient_norm,
            "peak_memory_bytes": result.peak_memory_bytes,
            "payload_bytes": payload,
            "valid": spent is None or not spent.problems,
        }
        if spent is not None:
            line |= {
                "wire_tx_bytes": spent.wire_tx_bytes,
                "wire_rx_bytes": spent.wire_rx_bytes,
                "queue_drops": spent.queue_drops,
                "relay_drops": spent.relay_drops,
                "backlog_bytes": spent.backlog_bytes,
                "resent": spent.resent,
                "fidelity": spent.fidelity,
                "suspect": spent.suspect,
            }
            if spent.problems:
                line["why"] = spent.problems
        every = spent is not None or self.trainer.index % _PROGRESS_EVERY == 0
        assert self.metrics is not None
        self.metrics.write(line, **(system_sample() | self.trainer.monitor() if every else {}))

    def _meter(self) -> "_Meter":
        """What stands on every counter, once all that was sent has arrived."""
        settle(self.transport.connections)
        return _Meter(
            sent=Counter(self.transport.sent),
            sockets=socket_bytes(self.transport.connections),
            wire=self.wire.read(),
            pulse=self.fidelity.read(),
            at_seconds=time.perf_counter(),
        )

    def _spent(self, before: "_Meter", problems: Sequence[str] = ()) -> Spent:
        """Since `before`; what does not balance stands behind these `problems`."""
        now = self._meter()
        payload = {channel: count - before.sent[channel] for channel, count in now.sent.items()}
        sockets = now.sockets.since(before.sockets)
        drops = _difference(now.wire.tx_drops, before.wire.tx_drops)
        relay_drops = now.pulse.dropped - before.pulse.dropped
        fidelity, late, suspect = judge(before.pulse, now.pulse, now.at_seconds - before.at_seconds)
        wire, interface = _difference(now.wire.tx_bytes, before.wire.tx_bytes), _interface(before.wire, now.wire)
        why = balance(
            sum(payload.values()),
            sockets,
            wire,
            segment_bytes=self.segment_bytes,
            drops=(drops or 0) + relay_drops,
            interface_bytes=interface,
        )
        return Spent(
            payload_bytes=payload,
            acked=sockets.acked,
            sent=sockets.sent,
            resent=sockets.resent,
            segments=sockets.segments,
            predicted_wire_bytes=predicted_wire_bytes(sockets),
            wire_tx_bytes=wire,
            wire_rx_bytes=_difference(now.wire.rx_bytes, before.wire.rx_bytes),
            interface_tx_bytes=interface,
            queue_drops=drops,
            relay_drops=relay_drops,
            backlog_bytes=now.wire.backlog_bytes,
            fidelity=fidelity,
            suspect=tuple(suspect),
            problems=(*problems, *why, *late),
        )

    def _progress(self, done: int, total: int) -> None:
        if self.rank == 0 and (done % _PROGRESS_EVERY == 0 or done == total):
            self.reply({"progress": [done, total]})


def _interface(before: WireBytes, now: WireBytes) -> int | None:
    """What the interface has sent meanwhile, as the wire would carry it."""
    sent = _difference(now.interface_tx_bytes, before.interface_tx_bytes)
    packets = _difference(now.interface_tx_packets, before.interface_tx_packets)
    wire = _difference(now.tx_packets, before.tx_packets)
    return None if sent is None or packets is None or wire is None else interface_wire_bytes(sent, packets, wire)


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before


def _beat(reply: Reply) -> None:
    """Say every second that this process lives."""
    with suppress(OSError, ValueError):  # the driver has gone, or this process ends
        while True:
            reply({"alive": True})
            time.sleep(_BEAT_SECONDS)


def serve() -> None:
    """Take orders until standard input ends."""
    torch.set_num_threads(1)
    with answering() as reply:
        threading.Thread(target=_beat, args=(reply,), name="beat", daemon=True).start()
        try:
            rank = Rank(reply)
            reply({"done": "start"})
            for line in sys.stdin:
                order = json.loads(line)
                name = order.pop("do")
                answer = getattr(rank, name)(**order)
                reply({"done": name, **(asdict(answer) if answer is not None else {})})
        except Exception as error:  # whatever it is, the driver must hear of it and the log must show it
            traceback.print_exc()
            reply({"failed": f"{type(error).__name__}: {error}", "follows": isinstance(error, PeerLost)})
            sys.exit(1)
