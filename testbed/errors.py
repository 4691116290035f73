"""The exceptions of this package, drawn as a tree.

TestbedError
├── UsageError    a user's mistake: what was given, what is allowed, what to type (exit status 2)
├── RunFailed     a run that must not go on: a lost rank, a link not proven, a broken invariant (exit status 1)
│   └── LossChanged   one arm's losses on a link are not those that were learned off it
├── PeerLost      seen by a rank: the other end of a connection has gone
└── Unreachable   a remote set or tokenizer cannot be read now (testbed.data.extra; exit status 1)
"""

import errno

from emulation.errors import legible

__all__ = ["LossChanged", "PeerLost", "RunFailed", "TestbedError", "UsageError", "in_words"]

_REMEDIES = {
    errno.ENOSPC: "make room on the disk, and type the same again: what is finished is kept",
    errno.EDQUOT: "make room below your quota, and type the same again: what is finished is kept",
}


def in_words(error: OSError) -> str:
    """What the system said, about which file, and what to do where that is known."""
    what = error.strerror or f"{error}" or type(error).__name__
    about = f": {error.filename}" if error.filename is not None and error.strerror else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{what}{about}" + (f"; {remedy}" if remedy else "")


class TestbedError(Exception):
    """Base of all errors that this package raises on purpose."""

    __test__ = False  # the name starts with "Test"; it is not one


class UsageError(TestbedError, ValueError):
    """A user's mistake, in one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(legible(message))


class RunFailed(TestbedError):
    """A run that cannot be believed any more, with the reason."""


class LossChanged(RunFailed):
    """A network must change time and never arithmetic: one did, or what it is compared with is another trainer's."""


class PeerLost(TestbedError):
    """Another rank's connection ended while it was needed."""
