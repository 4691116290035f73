"""A task that an installed package adds: it makes rows, batches are made of them here."""

import json
from collections.abc import Mapping

from pydantic import JsonValue

from testbed.config.data import TASKS, Data, check_vocabulary
from testbed.config.model import Model
from testbed.config.plugged import plugged_task
from testbed.data.batch import Batch, Split, digest_of, stack

__all__ = ["Plugged", "check_plugged"]


def check_plugged(data: Data, model: Model) -> None:
    """Raise `UsageError` if an installed task has no such options, or more token ids than the model."""
    if data.task not in TASKS:
        check_vocabulary(data, model, plugged_task(data.task, data.options).vocabulary)


class Plugged:
    """Batches as a function of (seed, split, step) and of nothing else."""

    def __init__(self, name: str, options: Mapping[str, JsonValue], *, seed: int) -> None:
        self._task, self._seed = plugged_task(name, options), seed
        self.vocabulary = self._task.vocabulary
        self.sha256 = digest_of(f"{name} {json.dumps(options, sort_keys=True)}".encode())
        """Digest of the settings: this source reads no text."""

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:
        """`sequences` × `context` tokens."""
        return stack(self._task.row, self._seed, split, step, sequences, context)
