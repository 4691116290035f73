"""Training from the warm start to the end, as every loop of ours does it: on nodes, off the network, under torchrun."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from testbed.trainer.loop import StepResult, Trainer

__all__ = ["Taken", "check_payload", "steps_of"]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that has been taken, weights averaged where that was due."""

    result: StepResult
    payload: dict[str, int]
    """Bytes that the step handed to the transport, by channel."""
    averaged: bool
    """Whether the weights were averaged after it."""
    averaging_seconds: float
    averaging_payload: dict[str, int]
    """Of an averaging that was due; the one more at the end is on nobody's account."""
    to_validate: bool
    """Every so many steps, as the preset says, and at the end."""
    last: bool


def steps_of(trainer: Trainer) -> Iterator[Taken]:
    """Take every step that is left, one for each item, with what it sent held against the closed form.

    Weights are averaged where that is due and once more at the end, which is judged at equal weights.
    """
    steps, every = trainer.preset.steps, trainer.preset.validation_every
    while trainer.index < steps:
        expected = trainer.payload_of_step(trainer.index)  # asked first: at its end a codec may be unplugged
        before = Counter(trainer.transport.sent)
        result = trainer.step()
        payload = dict(trainer.transport.sent - before)
        check_payload(payload, expected)
        before = Counter(trainer.transport.sent)
        due, last = trainer.sync_due, trainer.index == steps
        averaged = due or (last and trainer.arm.sync == "average")
        seconds = trainer.average_weights() if averaged else 0.0
        yield Taken(
            result=result,
            payload=payload,
            averaged=averaged,
            averaging_seconds=seconds if due else 0.0,
            averaging_payload=dict(trainer.transport.sent - before) if due else {},
            to_validate=last or trainer.index % every == 0,
            last=last,
        )


def check_payload(payload: dict[str, int], expected: dict[str, int]) -> None:
    """Payload by channel must be the closed form, to the byte, ballast and heads included."""
    counted, expected = ({channel: n for channel, n in each.items() if n} for each in (payload, expected))
    assert counted == expected, f"payload of a step {counted} is not the closed form {expected}"
