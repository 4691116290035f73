"""What arms know at the end of `testbed learn`, held together: `quality.json`."""

from dataclasses import dataclass
from typing import Literal

from testbed.config.tree import STRICT

__all__ = ["ArmQuality", "CodeState", "Interval", "NullQuality", "PresetQuality", "QualityRecord", "TimesOf"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds, with half the width of its 95 % interval."""

    __pydantic_config__ = STRICT

    mean: float
    half: float | None
    """None of a single value."""
    count: int

    @property
    def low(self) -> float | None:
        """Its lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Its upper end."""
        return None if self.half is None else self.mean + self.half


@dataclass(frozen=True, kw_only=True)
class CodeState:
    """A state of the code by which cells were learned."""

    __pydantic_config__ = STRICT

    sources: str | None
    torch: str
    commits: dict[str, int]
    """Cells by commit."""
    cells: int


@dataclass(frozen=True, kw_only=True)
class TimesOf:
    """The emulated run whose seconds per step are used."""

    __pydantic_config__ = STRICT

    of: str
    mode: str
    pace: str


@dataclass(frozen=True, kw_only=True)
class NullQuality:
    """What the best null of each seed leaves to exact, in nats on remote tokens."""

    __pydantic_config__ = STRICT

    arm: str
    """Best in the mean."""
    missing: tuple[str, ...]
    """Nulls that were not learned."""
    gap: Interval
    share: float | None
    """gap / (control − exact)."""
    counts: bool | None
    """Whether the task asks for what a codec compresses; None: cannot be told yet."""
    loss: dict[int, float]
    """Loss of the best null, by seed."""


@dataclass(frozen=True, kw_only=True)
class ArmQuality:
    """One arm on one preset; losses in nats per token, at the end."""

    __pydantic_config__ = STRICT

    arm: str
    seeds: tuple[int, ...]
    codec: str
    exchange: str
    split: str
    sync: str
    scope: str
    tokens: int
    """Read in training."""
    steps: int
    bytes_forward: float
    """Bytes of one token and layer to one peer."""
    bytes_backward: float
    kv_bytes: float
    """Bytes of K and V that a rank sends in a step."""
    weight_bytes: float
    val_loss: Interval | None
    val_loss_vs_exact: Interval | None
    val_loss_above_exact: Interval | None
    val_loss_exact_attention: Interval | None
    recall_accuracy_remote: Interval | None
    recovered_loss: Interval | None
    recovered_recall: Interval | None
    drift: Interval | None
    clipped: Interval | None
    recovered_beyond_nulls: Interval | None = None
    parity: bool | None = None
    step_seconds: float | None = None
    """From here on: at equal time."""
    step_seconds_kind: Literal["measured", "modelled"] | None = None
    steps_in_time: float | None = None
    val_loss_remote_in_time: Interval | None = None
    recovered_in_time: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class PresetQuality:
    """All arms on one preset, and whether it shows anything."""

    __pydantic_config__ = STRICT

    preset: str
    val_loss_spread: float | None
    """Deviation of exact over seeds."""
    val_loss_gap: float | None
    """Control − exact."""
    val_loss_apart: float | None
    """Gap / spread."""
    val_loss_remote_spread: float | None
    val_loss_remote_gap: float | None
    val_loss_remote_apart: float | None
    shows: bool | None
    """Whether control lies far enough from exact; None: cannot be told."""
    null: NullQuality | None
    horizon_seconds: float | None
    """When the fastest arm has ended."""
    arms: tuple[ArmQuality, ...]


@dataclass(frozen=True, kw_only=True)
class QualityRecord:
    """`quality.json`."""

    __pydantic_config__ = STRICT

    title: str
    exact: str
    control: str
    nulls: tuple[str, ...]
    margin_nats: float | None
    """Above exact, up to which an arm may be at parity."""
    cells: int
    cells_asked: int
    code: tuple[CodeState, ...]
    interval: str
    """What an interval is, in words."""
    times: TimesOf | None
    presets: tuple[PresetQuality, ...]
