"""What can go wrong, in one tree.

EmulationError
├── UsageError        what the user gave is not allowed (also a ValueError)
├── LinkError         a link is not what was asked for; nothing may run on it
└── CapabilityError   this machine refuses something that is needed, with the remedy
"""

__all__ = ["CapabilityError", "EmulationError", "LinkError", "UsageError", "legible"]

_LONGEST_WORD, _LONGEST_SENTENCE = 200, 900


def legible(text: str, *, keep: str = "") -> str:
    """The same in one line that a terminal and a log can show: control characters, halves of characters and what turns
    the direction of writing as Python escapes them, very long words and sentences with their middle left out.
    Characters in `keep` stay, and then nothing is left out."""
    shown = "".join(each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text)
    if keep:
        return shown
    words = (_shortened(word, _LONGEST_WORD) for word in shown.split(" "))
    return _shortened(" ".join(words), _LONGEST_SENTENCE)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2 - 20
    return f"{text[:half]} … ({len(text):,} characters) … {text[-half:]}"


class EmulationError(Exception):
    """The network could not be built, read or taken down."""


class UsageError(EmulationError, ValueError):
    """A user's mistake, in one sentence: what was given, what is allowed, what to type instead."""

    def __init__(self, message: str) -> None:
        super().__init__(legible(message))


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
