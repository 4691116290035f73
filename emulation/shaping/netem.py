"""Delay and loss. This version shapes rates only; a delay or a loss is refused rather than left out."""

from emulation.errors import UsageError
from emulation.network import Link

__all__ = ["refuse"]


def refuse(link: Link) -> None:
    """Raise if `link` asks for what this version cannot make, so that no run goes on with a link it did not
    ask for."""
    if link.delay_us or link.loss:
        what = "a delay" if link.delay_us else "a loss"
        raise UsageError(f"{what} was asked for, and this version shapes rates only; leave DELAY and LOSS out.")
