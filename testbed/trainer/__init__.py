"""The training loop of one rank, the warm start before it, and what is kept between runs."""

from testbed.trainer.loop import StepResult, Trainer
from testbed.trainer.numbers import agree, digest, learning_rate
from testbed.trainer.warm import warm_start
from testbed.trainer.warm_weights import WarmStart

__all__ = ["StepResult", "Trainer", "WarmStart", "agree", "digest", "learning_rate", "warm_start"]
