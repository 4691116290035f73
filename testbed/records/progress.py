"""What a run says while it runs."""

from dataclasses import dataclass
from typing import TypedDict

from testbed.config.tree import STRICT

__all__ = ["Facts", "RunState"]


class Facts(TypedDict, total=False):
    """What is known of the step under way; each stays until it is said anew."""

    link: str
    arm: str
    step: int
    of: int
    loss: float | None
    step_seconds: float | None
    wire_mb: float | None
    """On the wire, in this step."""
    left_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class RunState:
    """`state.json`."""

    __pydantic_config__ = STRICT

    at: float
    """When it was written: seconds since 1970."""
    seconds: float
    """Since the run's beginning."""
    stage: str
    facts: dict[str, str | int | float | None]
    """`Facts`."""
    ended: bool
