"""From a configuration to batches: the one door through which training gets its data."""

from typing import Protocol

from testbed.config.data import STDLIB, TASKS, Data, corpus_folder, corpus_vocabulary
from testbed.data.batch import Batch, Split
from testbed.data.corpus import Corpus, standard_library
from testbed.data.mqar import MQAR
from testbed.data.plugged import Plugged
from testbed.data.prepared import open_prepared
from testbed.data.recall import RecallMix
from testbed.data.snapshot import Snapshot
from testbed.data.text import Text

__all__ = ["Source", "open_corpus", "open_source"]


class Source(Protocol):
    """Batches as a function of seed, split, step and row, whatever the number of ranks that share them."""

    sha256: str
    """Of the corpus, or of the settings where there is none."""
    vocabulary: int
    """Token ids are below it."""

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:
        """The batch of `step`. Validation batches do not depend on the seed."""
        ...


def open_source(data: Data, *, seed: int, chunks: int, context: int = 0) -> Source:
    """What `data` describes. `chunks`: of the recall task, whatever the number of nodes. `context`: of the sequences
    that are trained on when the warm start has ended; 0: of all."""
    if data.task not in TASKS:
        return Plugged(data.task, data.options, seed=seed)
    if data.task == "mqar":
        return MQAR(
            seed=seed,
            keys=data.keys,
            values=data.values,
            pairs=data.pairs,
            queries=data.queries,
            gap_power=data.gap_power,
        )
    if data.task == "snapshot":
        settings = {key: getattr(data, key) for key in ("registers", "values", "section", "lead", "marks")}
        return Snapshot(seed=seed, context=context, **settings)
    corpus = open_corpus(data)
    streams = corpus.streams()
    if data.task == "text":
        return Text(streams, seed=seed, sha256=corpus.sha256, vocabulary=corpus.vocabulary)
    return RecallMix(
        streams["train"],
        streams["validation"],
        seed=seed,
        chunks=chunks,
        keys=data.keys,
        values=data.values,
        share=data.share,
        first_query=corpus.vocabulary,
        sha256=corpus.sha256,
    )


def open_corpus(data: Data) -> Corpus:
    """The text, verified."""
    corpus_vocabulary(data)  # refuses another tokenizer than the asked one
    return standard_library() if data.corpus == STDLIB else open_prepared(corpus_folder(data.corpus))
