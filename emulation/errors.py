"""What can go wrong, in one tree.

EmulationError
├── UsageError        what the user gave is not allowed (also a ValueError)
├── LinkError         a link is not what was asked for; nothing may run on it
└── CapabilityError   this machine refuses something that is needed, with the remedy
"""

__all__ = ["CapabilityError", "EmulationError", "LinkError", "UsageError"]


class EmulationError(Exception):
    """The network could not be built, read or taken down."""


class UsageError(EmulationError, ValueError):
    """A user's mistake, in one sentence: what was given, what is allowed, what to type instead."""


class LinkError(EmulationError):
    """A link that is not proven: what was asked, what was found, what to try."""


class CapabilityError(EmulationError):
    """The machine refuses something that is needed: what, and what to change."""

    def __init__(self, message: str, *, reason: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        """What the machine said, where that is known apart."""
        self.remedy = remedy
        """What to change, where that is known apart."""
