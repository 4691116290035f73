"""The training loop of one rank, the warm start before it, and what is kept between runs."""

from testbed.trainer.loop import StepResult, Trainer
from testbed.trainer.numbers import agree, digest, learning_rate
from testbed.trainer.session import Taken, check_payload, steps_of
from testbed.trainer.warm import warm_start
from testbed.trainer.warm_weights import WarmStart

__all__ = [
    "StepResult",
    "Taken",
    "Trainer",
    "WarmStart",
    "agree",
    "check_payload",
    "digest",
    "learning_rate",
    "steps_of",
    "warm_start",
]
