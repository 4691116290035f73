"""What a run says while it runs: a live line on a terminal, plain lines in a pipe."""

import time
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status

__all__ = ["Progress", "counted", "minutes"]

_PLAIN_EVERY_SECONDS = 5.0


def counted(number: int, thing: str) -> str:
    """ "1 cell", "2 cells"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def minutes(seconds: float) -> str:
    """ "12 min", and below a minute and a half "80 s"."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class Progress:
    """`report(text)`: text that starts with blanks is progress within a stage; other text starts one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()
        self._last_plain = 0.0
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._status = self.console.status("starting")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def report(self, text: str) -> None:
        """Show one line, with the minutes passed."""
        passed = time.monotonic() - self._started
        line = f"[dim]{int(passed // 60):2d}:{passed % 60:04.1f}[/dim]  {escape(text)}"
        counting = text.startswith(" ") and "/" in text and text.rstrip()[-1].isdigit()
        if not counting:
            self.console.print(line, highlight=False, soft_wrap=True)
        elif self._status:
            self._status.update(line)
        elif time.monotonic() - self._last_plain > _PLAIN_EVERY_SECONDS:
            self._last_plain = time.monotonic()
            self.console.print(line, highlight=False, soft_wrap=True)
