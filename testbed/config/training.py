"""One arm under torchrun: what a file says (`--config`), what flags say, and the two together."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from testbed.commandline import flag
from testbed.config.arm import Arm
from testbed.config.arms import arm_named
from testbed.config.preset import Preset
from testbed.config.tree import STRICT, at_least, load_toml, read_toml

__all__ = ["Train", "Training", "resolve_training"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one arm as a rank of torchrun, on real machines or on one:
    torchrun --nproc-per-node 4 -m testbed.trainer --arm latent"""

    config: Annotated[str | None, flag("FILE")] = None
    """A .toml file that says all of this, with the arm and the preset as tables if need be; flags beat it."""
    arm: Annotated[str | None, flag("ARM")] = None
    """centralised, decentralised, subspace, latent, control, no-cp, ring, best, int8 …; latent unless given."""
    preset: Annotated[str | None, flag("NAME|FILE")] = None
    """What is trained: a name in experiments/presets, or a .toml file; snapshot unless given."""
    seed: Annotated[int | None, flag("N")] = None
    """Seed of weights and data; 0 unless given."""
    steps: Annotated[int | None, flag("N")] = None
    """Steps to end at; the preset's unless given."""
    transport: Annotated[Literal["auto", "sockets", "distributed"] | None, flag("sockets|distributed")] = None
    """sockets: TCP of our own; distributed: torch.distributed, NCCL with GPUs and gloo without. auto: NCCL where every
    rank has a GPU, else sockets."""
    out: Annotated[str | None, flag("DIR")] = None
    """Where metrics, logs and checkpoints go; runs/train unless given."""
    checkpoint_every: Annotated[int | None, flag("N")] = None
    """Steps between two checkpoints; only one at the end unless given."""
    resume: bool = False
    """Go on from the newest checkpoint in --out that every rank has; from the beginning where none has any."""
    silence: Annotated[float | None, flag("SECONDS")] = None
    """A rank that has not been heard of for so long ends the run, by name; 25 unless given."""
    secret_file: Annotated[str | None, flag("FILE")] = None
    """A file of at least 16 bytes, the same for every rank, which they prove to each other that they know; or the
    variable TESTBED_SECRET. Without it ranks are not authenticated."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training, resolved; also what a configuration file holds."""

    __pydantic_config__ = STRICT

    arm: str | Arm = "latent"
    preset: str | Preset = "snapshot"
    seed: int = 0
    steps: int | None = None
    transport: Literal["auto", "sockets", "distributed"] = "auto"
    out: str = "runs/train"
    checkpoint_every: int | None = None
    silence: float = 25.0

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)
        at_least(2, silence=self.silence)
        for name in ("steps", "checkpoint_every"):
            if (given := getattr(self, name)) is not None:
                at_least(1, **{name: given})

    def resolved_preset(self) -> Preset:
        """With the steps that were asked for."""
        preset = load_toml(Preset, "presets", self.preset) if isinstance(self.preset, str) else self.preset
        return preset if self.steps is None else replace(preset, steps=self.steps)

    def resolved_arm(self) -> Arm:
        """By its name or as it stands in the file."""
        return arm_named(self.arm) if isinstance(self.arm, str) else self.arm


def resolve_training(given: Train) -> Training:
    """File and flags together; raises `UsageError` with one sentence."""
    base = Training()
    if given.config is not None:
        base = read_toml(Training, Path(given.config))
    names = [field.name for field in fields(Training)]
    return replace(base, **{name: value for name in names if (value := getattr(given, name)) is not None})
