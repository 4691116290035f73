"""Documents out of a set on the Hugging Face hub, streamed: nothing is kept but the tokens.

Sets are data: experiments/data/NAME.toml, or a .toml of your own. The commit of a set is looked up when it is first
read and kept, so that what goes on later reads the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from testbed.config.corpus import Position, SourceFacts
from testbed.config.tree import STRICT
from testbed.data.extra import Unreachable, require
from testbed.data.files import digest_of_files, string
from testbed.errors import TestbedError, UsageError

__all__ = ["Hub", "HubSet", "reaching"]

_INSTEAD = (
    "look at the network and type the same again, which goes on where it stopped; or give local files "
    "(testbed data prepare FILE|FOLDER), or 'stdlib', which every machine has"
)


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A set, and which of its texts to read."""

    __pydantic_config__ = STRICT

    hub: str
    """Its id, owner/name; or a builder of `datasets` (json, parquet, text) for files of one's own."""
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    """A branch, tag or commit; the main branch unless given."""
    data_files: str | None = None
    """Which of its files, as a pattern."""
    tokenizer: str = "gpt2"
    """Unless --tokenizer chooses another."""
    source: str
    """Who made it, where that is described, under which licence."""


class Hub:
    """Its documents, from any position on."""

    def __init__(self, chosen: HubSet, *, name: str, column: str | None = None) -> None:
        self._set, self._column = chosen, column or chosen.column
        self._stream: Any = None
        self.described: SourceFacts = {
            "name": name,
            "hub": chosen.hub,
            "config": chosen.config,
            "split": chosen.split,
            "column": self._column,
            "data_files": chosen.data_files,
            "citation": chosen.source.strip(),
        }
        if "/" not in chosen.hub and chosen.data_files is not None:  # files of one's own are known by their content
            own = sorted(Path(each) for each in glob(chosen.data_files, recursive=True))
            self.described["sha256"] = digest_of_files([path for path in own if path.is_file()])
        if chosen.revision is not None:
            self.described["asked_revision"] = chosen.revision
        self.found: SourceFacts = {}

    def read(self, position: Position | None) -> Iterator[str]:
        datasets = require("datasets", f"reading '{self._set.hub}'")
        datasets.disable_progress_bars()
        with reaching(self._set.hub):
            revision = position["revision"] if position else self._commit()
            self.found = {"revision": revision}
            stream = datasets.load_dataset(
                self._set.hub,
                self._set.config,
                split=self._set.split,
                data_files=self._set.data_files,
                revision=revision,
                streaming=True,
            )
            if position:
                stream.load_state_dict(position["state"])
            self._stream = stream
            rows = iter(stream)
        number = 0
        while True:
            with reaching(self._set.hub):
                row = next(rows, None)
            if row is None:
                return
            number += 1
            if self._column not in row:
                names = ", ".join(f"'{each}'" for each in row)
                raise UsageError(
                    f"'{self._set.hub}' has no column '{self._column}' (columns: {names}); --column chooses another"
                )
            yield string(row[self._column], f"'{self._set.hub}', row {number}", self._column)

    def position(self) -> Position:
        return {"revision": self.found["revision"], "state": self._stream.state_dict()}

    def _commit(self) -> str | None:
        """The commit that its branch stands at now; one try, so that a missing network is seen at once."""
        if "/" not in self._set.hub:  # a builder, on files of one's own
            return None
        from huggingface_hub import HfApi

        return HfApi().dataset_info(self._set.hub, revision=self._set.revision).sha


@contextmanager
def reaching(what: str, instead: str = _INSTEAD) -> Iterator[None]:
    """Turns what the hub's libraries raise into one sentence."""
    try:
        yield
    except TestbedError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if _of_the_network(error):
            raise Unreachable(f"cannot reach '{what}' on the Hugging Face hub ({reason}): {instead}") from None
        if isinstance(
            error, (ValueError, RuntimeError)
        ):  # no such configuration or split, a loading script, broken JSON
            raise UsageError(f"'{what}' cannot be read: {reason}") from None
        raise


def _of_the_network(error: Exception) -> bool:
    """Connections, time-outs, answers such as 404: of the system, or of the libraries beneath `datasets`."""
    beneath = ("httpx", "httpcore", "huggingface_hub")
    return isinstance(error, OSError) or any(each.__module__.startswith(beneath) for each in type(error).__mro__)
