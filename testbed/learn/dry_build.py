"""A trainer built once with nobody at the other end, so that what cannot be trained is said before anything is."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from testbed.codecs import Codec, Shape, at_scale, make_codec, whole
from testbed.config import Arm, Preset
from testbed.data.batch import Batch, Split
from testbed.data.plugged import check_plugged
from testbed.errors import UsageError
from testbed.pace import plan_for
from testbed.settings.emulate import Settings
from testbed.targets import Target
from testbed.trainer import Trainer

__all__ = ["rehearse", "rehearse_codecs"]


def rehearse(preset: Preset, arm: Arm, nodes: int) -> None:
    """Raise `UsageError` if so many nodes cannot train this."""
    check_plugged(preset.data, preset.model)
    short = preset.fewest_short
    if short < nodes:
        raise UsageError(
            f"{nodes} nodes cannot share the {short} short sequences of a warm-start step: type nodes = {short}"
        )
    trainer = Trainer(preset, arm, _Nothing(), _Mirror(nodes), seed=0, warm=None)
    for codec in trainer.codecs:
        _rehearse_codec(codec, Shape(batch=1, tokens=preset.context // nodes))
    trainer.close()


def _rehearse_codec(codec: Codec, shape: Shape) -> None:
    """A chunk there and its gradients back; `UsageError` with what went wrong, or if no gradient comes back at all."""
    name, generator = codec.config.name, torch.Generator().manual_seed(0)
    size = (shape.batch, shape.tokens, codec.kv_width)
    key, value = (torch.randn(size, generator=generator).requires_grad_() for _ in range(2))
    try:
        parts, wires = codec.encode(key, value).parts, codec.wires(shape)
        returned = any(wire.returned and part.requires_grad for wire, part in zip(wires, parts, strict=True))
        there = codec.unpack(codec.pack(tuple(part.detach() for part in parts), shape), shape, key.detach())
        received = [part.requires_grad_(wire.returned) for part, wire in zip(whole(there), wires, strict=True)]
        decoded = codec.decode(tuple(received), codec.decoder_parameters())
        if returned:
            _check_way_back(codec, shape, received, decoded)
    except Exception as error:  # of a user's own code: whatever it raises, it must be said where
        said = f": {str(error).splitlines()[0]}" if str(error) else ""
        raise UsageError(
            f"the codec '{name}' cannot take a chunk of {shape.tokens} tokens there and back: "
            f"{type(error).__name__}{said}"
        ) from error
    if not returned:
        raise UsageError(
            f"the codec '{name}' returns no gradient: of its parts none both requires one and has a wire that is "
            "returned, so that a node would learn nothing from the others' losses"
        )


def _check_way_back(codec: Codec, shape: Shape, received: list[Tensor], decoded: tuple[Tensor, Tensor]) -> None:
    """Gradients of the parts that have one, in as many bytes as the wires say."""
    asked = [part for part in received if part.requires_grad]
    found = iter(torch.autograd.grad(decoded[0].sum() + decoded[1].sum(), asked, allow_unused=True))
    grads = [next(found) if part.requires_grad else None for part in received]
    back = tuple(
        torch.zeros_like(part) if grad is None and part.requires_grad else grad
        for grad, part in zip(grads, received, strict=True)
    )
    codec.unpack(codec.pack(back, shape, "backward"), shape, decoded[0].detach(), "backward")


def rehearse_codecs(settings: Settings, arms: Iterable[Arm]) -> None:
    """Raise `UsageError` if an arm's codec cannot make a step, a paced run cannot know what it sends at a target, or
    an installed task cannot do what the preset asks of it."""
    preset = settings.preset
    check_plugged(preset.data, preset.model)
    for arm in arms:
        if not arm.sends_kv:
            if settings.target is not None:
                plan_for(arm, preset, settings.target, timed_layers=settings.target.layers)
            continue
        config, heads = at_scale(arm.codec, preset), preset.model.kv_heads
        codec = make_codec(config, preset.kv_width, layer=0, seed=0, kv_heads=heads)
        _rehearse_codec(codec, Shape(batch=1, tokens=preset.context // settings.nodes))
        if settings.target is not None:
            _rehearse_pace(arm, codec, settings, settings.target)


def _rehearse_pace(arm: Arm, codec: Codec, settings: Settings, target: Target) -> None:
    plan = plan_for(arm, settings.preset, target, timed_layers=target.layers)
    shape = Shape(batch=settings.preset.batch, tokens=settings.preset.context // settings.nodes)
    for direction in ("forward", "backward"):
        own = sum(codec.payload(shape, direction).values())
        if own > plan.bytes_of(direction):
            raise UsageError(
                f"arm '{arm.name}': the small model sends {own} bytes a message, more than {target.name}'s "
                f"{plan.bytes_of(direction)}, up to which a paced run fills it: type PACE=none"
            )


class _Nothing:
    """A source that is never read."""

    sha256 = ""
    vocabulary = 0

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:  # noqa: ARG002
        raise AssertionError("a rehearsal reads nothing")


class _Mirror:
    """A transport on which every other rank says what this one says."""

    head_bytes = 0
    lanes = False

    def __init__(self, world: int) -> None:
        self.rank, self.world = 0, world
        self.sent: Counter[str] = Counter()

    def exchange(self, outgoing: list[Tensor | None], channels: dict[str, int], **_: Any) -> "_Said":  # noqa: ARG002
        return _Said(outgoing)

    def overlap(self, wanted: bool) -> None:
        pass

    def close(self) -> None:
        pass


class _Said:
    seconds = 0.0

    def __init__(self, messages: list[Tensor | None]) -> None:
        self._messages = messages

    def wait(self) -> list[Tensor | None]:
        return self._messages
