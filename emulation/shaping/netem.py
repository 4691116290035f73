"""Delay and loss. This version shapes rates only; a delay or a loss is refused rather than left out."""

import subprocess
import sys
from pathlib import Path

from emulation.errors import UsageError
from emulation.network import Link

__all__ = ["refuse"]

_ROOT = Path(__file__).resolve().parents[2]
_PROBE = "import sys; from emulation.capability import has_netem; sys.exit(0 if has_netem() else 1)"


def refuse(link: Link) -> None:
    """Raise if `link` asks for what this version cannot make: no run goes on with a link it did not ask for."""
    if not (link.delay_us or link.loss):
        return
    what = "a delay" if link.delay_us else "a loss"
    # in a process of its own: trying netem takes a world, which only a single thread may enter
    probe = subprocess.run([sys.executable, "-c", _PROBE], cwd=_ROOT, capture_output=True, check=False)
    kernel = "this kernel has" if probe.returncode == 0 else "this kernel does not have"
    raise UsageError(
        f"{what} was asked for, which needs netem, which {kernel}; "
        "this version shapes rates only: leave DELAY and LOSS out."
    )
