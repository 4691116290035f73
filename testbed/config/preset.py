"""What is trained: model, data, optimiser, steps."""

from dataclasses import dataclass, field

from testbed.config.data import Data, check_snapshot
from testbed.config.model import Model
from testbed.config.tree import STRICT, at_least
from testbed.errors import UsageError

__all__ = ["Preset"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is trained, the same in every arm of a comparison."""

    __pydantic_config__ = STRICT

    model: Model
    data: Data = field(default_factory=Data)
    context: int
    """Tokens in a sequence."""
    batch: int
    """Sequences in a step, over all nodes together."""
    warm_steps: int
    """Uncompressed steps on short contexts that every arm starts from."""
    steps: int
    """Context-parallel steps after the warm start."""
    sync_every: int
    """c, the steps between two averagings of the weights."""
    subspace_ranks: tuple[int, int]
    """r_K, r_V of the `subspace` codec."""
    latent_rank: int
    """r of the `latent` codec."""
    task_chunks: int = 4
    """Chunks of the recall task, whatever the number of nodes."""
    warm_contexts: tuple[int, ...] = ()
    """Contexts of the warm start, one after the other for equal shares of its steps, each step as many tokens; (): that
    of a chunk of the task."""
    learning_rate: float = 3e-3
    learning_rate_warmup: int = 50
    learning_rate_floor: float = 0.1
    """Where the linear decay ends, as a fraction."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    """The largest norm of a step's gradients, to which longer ones are scaled; 0: none is."""
    accumulate: int = 1
    """Into how many parts a step's sequences are cut, one after the other, before the update."""
    document_mask: bool = False
    """Whether a token sees its own document only."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them; exchanges are never repeated."""
    compile: bool = False
    """torch.compile the layers' projections and feed-forward."""
    validation_sequences: int = 96
    validation_every: int = 50
    """Steps between two validations; a multiple of `sync_every`, for weights differ in between."""

    @property
    def kv_width(self) -> int:
        """d_kv: numbers in K (or V) of one token, over all heads."""
        return self.model.kv_width

    @property
    def short_contexts(self) -> tuple[int, ...]:
        """Contexts of the warm start, in their order."""
        return self.warm_contexts or (self.context // self.task_chunks,)

    @property
    def fewest_short(self) -> int:
        """Sequences of a warm-start step, which the nodes share; where contexts are longest."""
        return self.batch * self.context // max(self.short_contexts)

    def short_context(self, step: int) -> int:
        """Context of this step of the warm start."""
        return self.short_contexts[step * len(self.short_contexts) // self.warm_steps]

    def __post_init__(self) -> None:
        at_least(1, context=self.context, batch=self.batch, warm_steps=self.warm_steps, steps=self.steps)
        at_least(1, sync_every=self.sync_every, task_chunks=self.task_chunks, latent_rank=self.latent_rank)
        at_least(1, learning_rate_warmup=self.learning_rate_warmup, validation_every=self.validation_every)
        at_least(1, accumulate=self.accumulate)
        at_least(8, validation_sequences=self.validation_sequences)
        at_least(0, learning_rate=self.learning_rate, learning_rate_floor=self.learning_rate_floor)
        at_least(0, weight_decay=self.weight_decay, clip=self.clip)
        at_least(1, **dict(zip(("subspace_ranks (K)", "subspace_ranks (V)"), self.subspace_ranks, strict=True)))
        if self.context % self.task_chunks:
            raise UsageError(f"context = {self.context} must be a multiple of task_chunks = {self.task_chunks}")
        wrong = [each for each in self.warm_contexts if each < 1 or self.context % each]
        if wrong or len(self.warm_contexts) > self.warm_steps:
            raise UsageError(
                f"warm_contexts = {list(self.warm_contexts)}: each must divide context = {self.context}, and there can "
                f"be no more than warm_steps = {self.warm_steps}"
            )
        if self.data.task == "snapshot":
            check_snapshot(self.data, self.context, self.short_contexts)
        if self.batch % self.accumulate:
            raise UsageError(f"batch = {self.batch} sequences cannot be cut into accumulate = {self.accumulate} parts")
        if self.validation_every % self.sync_every:
            raise UsageError(
                f"validation_every = {self.validation_every} must be a multiple of sync_every = {self.sync_every}: "
                "the nodes hold the same weights only there"
            )
