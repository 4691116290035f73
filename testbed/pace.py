"""Holding a small trainer to the time and the message sizes of the node it stands for.

A CPU rank is so slow and its model so small that a literal 300 Mbit/s never hurts it. So each phase of a step
is held until the target's time for it has passed, and each message is filled up with ballast to the target's
size. Bytes and seconds on the wire are then the target's and *measured*; its compute time is *modelled* (from
published throughput); the loss is the small model's.

A step of the target, L like layers (f forward, b backward seconds, codec included):

    f | exchange | f | exchange | …  f | exchange | b | exchange | … b·(1−τ) | exchange | b·τ

Token ids, where they travel instead of K and V, do so once, before the first f; what receivers make of them is compute.
τ of the last backward phase lies behind the last exchange: the first layer's projections and the optimiser.
Nothing of an exchange is hidden behind the target's compute. Each of the small model's layers stands for a run
of the target's; all of those but its first carry ballast only. A step may be timed on k < L layers: they are
alike, and its time is multiplied by L/k.
"""

import time
from dataclasses import dataclass

import torch

from testbed.codecs import Codec, Direction, Shape, at_scale, at_target, make_codec
from testbed.config import Arm, Preset
from testbed.config.arm import PACED
from testbed.errors import UsageError
from testbed.parallel.exchanges import ID_BYTES, made_flops
from testbed.parallel.sync import all_reduce_bytes
from testbed.parallel.transport import Transport
from testbed.targets import Target

__all__ = ["Pace", "Plan", "plan_for"]

_TAIL = 0.25
_SLACK_SECONDS = 1e-3  # a window missed by less is the timer's grain, not an overrun


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a paced step of one arm is made of: everything a rank needs to know, in closed form."""

    message_bytes: int
    """K/V bytes from a node to each peer, per layer, on the way out; 0 without an exchange."""
    back_message_bytes: int
    """... and of their gradients."""
    forward_seconds: float
    """Compute of one layer, codec included. Modelled."""
    backward_seconds: float
    layers: int
    timed_layers: int
    """How many of the target's like layers a timed step goes through."""
    sync_message_bytes: int
    """Bytes to each peer in each of the two messages of a weight synchronisation."""
    first_bytes: int = 0
    """To each peer once a step, before the first layer: token ids."""
    last_message_bytes: int | None = None
    """Of the target's last layer in either direction, where its K and V travel uncompressed; None: like the others'."""
    modelled_goodput_bps: float | None = None
    """Where the link is modelled: payload rate between two nodes, waited for instead of carried."""
    round_trip_seconds: float = 0.0
    """... and the round trip that is added to each modelled exchange."""

    @property
    def compute_seconds(self) -> float:
        """Seconds of compute of a whole step."""
        return self.layers * (self.forward_seconds + self.backward_seconds)

    def bytes_to_a_peer(self, layers: int) -> int:
        """Bytes of K and V, or ids, that a step through so many layers, the last among them, sends to each peer."""
        both = self.message_bytes + self.back_message_bytes
        last = both if self.last_message_bytes is None else 2 * self.last_message_bytes
        return self.first_bytes + (layers - 1) * both + last

    def messages_to_a_peer(self, layers: int) -> int:
        """How many they are."""
        return 2 * layers * bool(self.message_bytes) + bool(self.first_bytes)

    def bytes_of(self, direction: Direction, *, last: bool = False) -> int:
        """Of a message in a direction, of the last layer or another."""
        if last and self.last_message_bytes is not None:
            return self.last_message_bytes
        return self.message_bytes if direction == "forward" else self.back_message_bytes

    def exchange_seconds(self, goodput_bps: float) -> float:
        """Bytes / goodput of a whole step, where a peer's messages get `goodput_bps`."""
        return self.bytes_to_a_peer(self.layers) * 8 / goodput_bps

    def sync_seconds(self, goodput_bps: float) -> float:
        """Bytes / goodput of one weight synchronisation."""
        return 2 * self.sync_message_bytes * 8 / goodput_bps


def plan_for(
    arm: Arm,
    preset: Preset,
    target: Target,
    *,
    timed_layers: int,
    modelled_goodput_bps: float | None = None,
    round_trip_seconds: float = 0.0,
) -> Plan:
    """The closed form of a paced step of `arm`, whose small model is the preset's, on a node of `target`.

    Raises `UsageError` for an exchange whose messages it does not know, and a codec that cannot say what it sends.
    """
    message, back, first, last, forward_flops = 0, 0, 0, None, 0.0
    if arm.exchange not in PACED:
        raise UsageError(
            f"a paced run knows the messages of {', '.join(PACED)}, not of {arm.exchange}: add PACE=none for arm "
            f"'{arm.name}'"
        )
    if arm.first_layer == "ids":
        raise UsageError(f"a paced run does not know first_layer = 'ids': add PACE=none for arm '{arm.name}'")
    if arm.exchange == "ids":
        first = ID_BYTES * target.tokens_per_node
        made = made_flops(target, arm.ids, target.tokens_per_node) * (target.nodes - 1)
        forward_flops = made / target.layers  # of the rank that makes most, the last, spread over its layers
    if arm.exchange == "all-gather":
        chosen, shape = at_target(arm.codec, preset, target), Shape(batch=1, tokens=target.tokens_per_node)
        with torch.device("meta"):  # shapes only: no memory is taken at the target's size
            codec = make_codec(chosen, target.kv_width, layer=0, seed=0)
            _check_size(codec, arm, preset)
            if arm.codec.final_layer == "exact":
                last = sum(make_codec(chosen, target.kv_width, layer=0, seed=0, final=True).payload(shape).values())
        message, back = (sum(codec.payload(shape, direction).values()) for direction in ("forward", "backward"))
        decoded = target.nodes - (0 if codec.own_chunk == "projected" else 1)
        forward_flops = codec.encode_flops(target.tokens_per_node)
        forward_flops += codec.decode_flops(target.tokens_per_node) * decoded
    forward = forward_flops / target.flops_per_second
    return Plan(
        message_bytes=message,
        back_message_bytes=back,
        first_bytes=first,
        last_message_bytes=last,
        forward_seconds=target.forward_seconds + forward,
        backward_seconds=target.backward_seconds + 2 * forward,  # twice the forward's, as for any linear map
        layers=target.layers,
        timed_layers=timed_layers,
        sync_message_bytes=_sync_message_bytes(arm, target),
        modelled_goodput_bps=modelled_goodput_bps,
        round_trip_seconds=round_trip_seconds,
    )


def _check_size(codec: Codec, arm: Arm, preset: Preset) -> None:
    """Messages that follow from the width alone differ where the width does; raises `UsageError`."""
    small = make_codec(at_scale(arm.codec, preset), preset.kv_width, layer=0, seed=0, kv_heads=preset.model.kv_heads)
    shape = Shape(batch=1, tokens=preset.context)
    silent = type(codec).ranks_for.__func__ is Codec.ranks_for.__func__
    if silent and small.kv_width != codec.kv_width and small.payload(shape) == codec.payload(shape):
        raise UsageError(
            f"the codec '{arm.codec.name}' sends the same at a width of {small.kv_width} and of {codec.kv_width}, and "
            f"does not say that it means to: give {type(codec).__name__} a ranks_for (docs/codec.md), or add PACE=none"
        )


def _sync_message_bytes(arm: Arm, target: Target) -> int:
    """A 1/N share of the numbers that are kept together, as they are written."""
    numbers = target.parameters
    if arm.weights.scope == "attention":
        numbers = target.layers * 2 * target.width * (target.width + target.kv_width)
    wire = "bf16" if arm.weights.wire == "fp32" and target.wire_bytes == 2 else arm.weights.wire
    return all_reduce_bytes(numbers, target.nodes, wire)


class Pace:
    """A rank's pacer: holds phases, fills messages, waits for modelled links. All times are perf_counter's."""

    def __init__(self, plan: Plan, transport: Transport, *, model_layers: int) -> None:
        assert plan.timed_layers % model_layers == 0, "a model layer stands for whole layers of the target"
        self.plan = plan
        self.transport = transport
        self.run_length = plan.timed_layers // model_layers
        self.exchange_seconds = 0.0
        self.exchanges: list[tuple[Direction, float]] = []
        """Each exchange of the step, and its seconds."""
        self.overruns: list[str] = []
        self._phases_left = 0
        self._at = 0
        """The target's layer whose exchange comes next, or is under way."""
        self._mark = 0.0
        self._posted = 0.0

    def begin(self) -> None:
        """The first window of a step opens now."""
        self.exchange_seconds = 0.0
        self.exchanges = []
        self.overruns = []
        self._phases_left = self.plan.timed_layers
        self._mark = time.perf_counter()

    def end(self) -> None:
        """Hold until the last window has passed."""
        self._hold("the end of the step", _TAIL * self.plan.backward_seconds)

    def shift(self, seconds: float) -> None:
        """Time that belongs to no window (a synchronisation) has passed."""
        self._mark += seconds

    def first_ballast(self, payload: int) -> int:
        """Bytes to fill the message before the first layer up with; none on a modelled link."""
        self._posted = time.perf_counter()
        return 0 if self.plan.modelled_goodput_bps is not None else self.plan.first_bytes - payload

    def after_first(self) -> None:
        """Account for that message: its time belongs to no window."""
        if self.plan.modelled_goodput_bps is not None:
            seconds = self.plan.first_bytes * 8 / self.plan.modelled_goodput_bps + self.plan.round_trip_seconds
            _sleep_until(self._posted + seconds)
        spent = time.perf_counter() - self._posted
        self.shift(spent)
        self.exchange_seconds += spent
        self.exchanges.append(("forward", spent))

    def before_exchange(self, direction: Direction, layer: int) -> None:
        """Hold until the window before this exchange has passed, then note when it is posted."""
        self._window(direction, layer)
        self._at = layer * self.run_length + (self.run_length - 1 if direction == "backward" else 0)
        self._posted = time.perf_counter()

    def ballast(self, direction: Direction, payload: int) -> int:
        """Bytes to fill a message up with; none on a modelled link."""
        if self.plan.modelled_goodput_bps is not None:
            return 0
        size = self._size(direction)
        assert payload <= size, "the small model sends more than its target would"
        return size - payload

    def _size(self, direction: Direction) -> int:
        return self.plan.bytes_of(direction, last=self._at == self.plan.timed_layers - 1)

    def after_exchange(self, direction: Direction, layer: int) -> None:
        """Account for the exchange that ended, then go through the target's layers that have no model layer."""
        self._account(direction)
        for _ in range(self.run_length - 1):
            self._window(direction, layer)
            self._at += 1 if direction == "forward" else -1
            self._posted = time.perf_counter()
            if self.plan.message_bytes:
                self._fill(direction)
            self._account(direction)

    def _fill(self, direction: Direction) -> None:
        empty = torch.empty(0, dtype=torch.uint8)
        outgoing = [empty if other != self.transport.rank else None for other in range(self.transport.world)]
        self.transport.exchange(outgoing, {}, ballast=self.ballast(direction, 0)).wait()

    def _account(self, direction: Direction) -> None:
        if self.plan.message_bytes and self.plan.modelled_goodput_bps is not None:
            seconds = self._size(direction) * 8 / self.plan.modelled_goodput_bps + self.plan.round_trip_seconds
            _sleep_until(self._posted + seconds)
        self._mark = time.perf_counter()
        if self.plan.message_bytes:
            self.exchange_seconds += self._mark - self._posted
            self.exchanges.append((direction, self._mark - self._posted))

    def _window(self, direction: Direction, layer: int) -> None:
        seconds = self.plan.forward_seconds
        if direction == "backward":
            self._phases_left -= 1
            last = self._phases_left == 0
            seconds = self.plan.backward_seconds * (1 - _TAIL if last else 1)
        self._hold(f"{direction} of layer {layer}", seconds)

    def _hold(self, what: str, seconds: float) -> None:
        deadline = self._mark + seconds
        late = time.perf_counter() - deadline
        if late > _SLACK_SECONDS:
            self.overruns.append(
                f"pace window overrun: {what} took {seconds + late:.3f} s where the target takes {seconds:.3f} s"
            )
        _sleep_until(deadline)
        self._mark = time.perf_counter()


def _sleep_until(deadline: float) -> None:
    while (left := deadline - time.perf_counter()) > 0:
        time.sleep(left)
