"""What a machine can do: the record of one thing, and the tools without which nothing begins."""

from dataclasses import dataclass

from emulation.errors import CapabilityError
from emulation.kernel.commands import tool_path

__all__ = ["INSTALL", "TOOLS", "Capability", "missing_tools", "require_tools"]

TOOLS = ("ip", "tc", "nsenter")
INSTALL = "sudo apt-get install iproute2 util-linux"


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One thing that was tried or looked up."""

    name: str
    ok: bool
    detail: str
    """What was found."""
    remedy: str = ""
    """What to change; empty where nothing needs to."""
    needed: bool = False
    """Whether every run needs it; otherwise it is information, or for some runs only."""


def missing_tools() -> list[str]:
    """Those that are not installed."""
    return [tool for tool in TOOLS if tool_path(tool) is None]


def require_tools() -> None:
    """Raise CapabilityError unless the tools that build networks are installed."""
    missing = missing_tools()
    if missing:
        raise CapabilityError(f"{', '.join(missing)} not found on this machine: type '{INSTALL}'.")
