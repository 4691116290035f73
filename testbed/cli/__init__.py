"""The command `testbed`, and what it prints."""

from testbed.cli.dispatch import main

__all__ = ["main"]
