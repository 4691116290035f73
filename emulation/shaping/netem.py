"""Delay and loss. This version shapes rates only; a delay or a loss is refused rather than left out."""

from emulation.errors import UsageError
from emulation.network import Link

__all__ = ["refuse"]


def refuse(link: Link) -> None:
    """Raise if `link` asks for what this version cannot make: no run goes on with a link it did not ask for."""
    if not (link.delay_us or link.loss):
        return
    from emulation.capability import has_netem  # imported late: capability tries things on whole networks

    what = "a delay" if link.delay_us else "a loss"
    lacking = "this version does not drive yet" if has_netem() else "this kernel does not have (see testbed doctor)"
    raise UsageError(f"{what} was asked for, which needs netem, which {lacking}: leave DELAY and LOSS out.")
