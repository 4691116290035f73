"""Where commands print."""

from rich.console import Console

__all__ = ["NARROW", "WIDE", "console_of"]

NARROW, WIDE = 110, 140
"""Columns of what goes to a pipe or a file, which has no width of its own."""


class _Console(Console):
    """A run goes on when nobody reads its output any more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def console_of(columns: int, *, stderr: bool = False) -> Console:
    """The terminal, or so many columns where there is none; `stderr`: standard output is for something else."""
    console = _Console(stderr=stderr)
    if not console.is_terminal:
        console.width = columns
    return console
