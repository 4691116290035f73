"""What a run says while it runs: a live line on a terminal, plain lines in a pipe, `state.json` for who watches it."""

import json
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Protocol, Self, Unpack, cast

from rich.console import Console, Group
from rich.markup import escape
from rich.status import Status
from rich.text import Text

from testbed.errors import UsageError
from testbed.records.files import plain, read_record
from testbed.records.progress import Facts, RunState

__all__ = ["Progress", "Reporter", "facts_line", "minutes", "watch"]

STATE = "state.json"
_PLAIN_EVERY_SECONDS = 5.0
_STATE_EVERY_SECONDS = 0.5
_BEAT_SECONDS, _SILENT_SECONDS = 5.0, 60.0


class Reporter(Protocol):
    """Say something. Text that starts with blanks is progress within a stage; other text starts one."""

    def __call__(self, text: str, **facts: Unpack[Facts]) -> None: ...


def minutes(seconds: float) -> str:
    """ "12 min", and below a minute and a half "80 s"."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def facts_line(facts: Facts) -> str:
    """What is known of the step under way: link, arm, step, loss, seconds, bytes on the wire, time left."""
    step = f"step {facts['step']}/{facts['of']}" if "step" in facts else None
    numbers = (
        ("loss", "loss {:.3f}"),
        ("step_seconds", "{:.2f} s a step"),
        ("wire_mb", "{:.4g} MB on the wire a step"),
    )
    parts = [facts.get("link"), facts.get("arm"), step]
    parts += [text.format(facts[key]) for key, text in numbers if facts.get(key) is not None]
    if facts.get("left_seconds") is not None:
        parts.append(f"about {minutes(facts['left_seconds'])} left")
    return " · ".join(part for part in parts if part)


class Progress:
    """`with Progress(console) as progress: progress.report("learning")`."""

    def __init__(self, console: Console, folder: Path | None = None) -> None:
        self.console = console
        self.folder = folder
        """Where `state.json` goes, once it is there."""
        self.facts: Facts = {}
        self._started = time.monotonic()
        self._last_plain = self._last_state = 0.0
        self._status: Status | None = None
        self._stage = "starting"
        self._lock, self._over = threading.Lock(), threading.Event()
        self._beat = threading.Thread(target=self._live, name="state", daemon=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._status = self.console.status(self._stage)
            self._status.start()
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()
        self._over.set()
        self._beat.join()
        self._write_state(ended=True)

    def _live(self) -> None:
        """Say now and then that this process lives: a step may take minutes, and its pid means nothing elsewhere."""
        while not self._over.wait(_BEAT_SECONDS):
            self._write_state()

    def report(self, text: str, **facts: Unpack[Facts]) -> None:
        """Show one line, with the minutes passed."""
        self.facts |= facts
        self._stage = text.strip()
        passed = time.monotonic() - self._started
        line = f"[dim]{int(passed // 60):2d}:{passed % 60:04.1f}[/dim]  {escape(text)}"
        counting = text.startswith(" ") and "/" in text and text.rstrip()[-1].isdigit()
        if not counting:
            self.console.print(line, highlight=False, soft_wrap=True)
        elif not self._status and time.monotonic() - self._last_plain > _PLAIN_EVERY_SECONDS:
            self._last_plain = time.monotonic()
            self.console.print(line, highlight=False, soft_wrap=True)
        if self._status:
            known = facts_line(self.facts)
            self._status.update(Group(Text.from_markup(line), Text(known, style="bold")) if known else line)
        if time.monotonic() - self._last_state > _STATE_EVERY_SECONDS:
            self._write_state()

    def _write_state(self, *, ended: bool = False) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        self._last_state = time.monotonic()
        state = RunState(
            at=time.time(),
            seconds=round(self._last_state - self._started, 1),
            stage=self._stage,
            facts=cast(dict[str, str | int | float | None], self.facts),
            ended=ended,
        )
        partial = self.folder / f"{STATE}.partial"
        with self._lock, suppress(OSError):  # a full disk is told by what matters more
            partial.write_text(json.dumps(plain(state)) + "\n")
            partial.replace(self.folder / STATE)


def watch(folder: Path, console: Console) -> int:
    """Show what a run elsewhere says, until it ends: 0, or 1 if it falls silent."""
    shown, since = "", time.time()
    with console.status("waiting") if console.is_terminal else nullcontext() as status:
        while True:
            state = _read_state(folder)
            line = "nothing is heard of it yet"
            if state is not None:
                passed, known = state.seconds, facts_line(cast(Facts, state.facts))
                line = f"{int(passed // 60):2d}:{passed % 60:04.1f}  {state.stage}" + (f"  [{known}]" if known else "")
                if state.ended:
                    console.print(Text(f"{line}\nit has ended"))
                    return 0
                if time.time() - state.at > _SILENT_SECONDS:
                    console.print(Text(f"{line}\nit has gone without a word: type its command again to go on"))
                    return 1
            elif time.time() - since > _SILENT_SECONDS:
                console.print(Text(f"{folder} says nothing of how it stands: testbed runs tells what became of it"))
                return 1
            if line != shown:
                shown = line
                if status:
                    status.update(Text(line))
                else:
                    console.print(Text(line))
            time.sleep(_STATE_EVERY_SECONDS)


def _read_state(folder: Path) -> RunState | None:
    """None: nothing, or nothing of ours."""
    try:
        return read_record(RunState, folder / STATE)
    except (OSError, UsageError):
        return None
