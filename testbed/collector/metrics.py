"""A line per step and rank, append-only JSON, flat keys with units; and what the process had of the machine."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import psutil

__all__ = ["MetricsFile", "StepLine", "cut_metrics", "read_metrics", "system_sample"]


class StepLine(TypedDict, total=False):
    """A line: a step, or what belongs to it. Validations, what the process has of the machine, and what codecs say of
    themselves stand in columns of their own names."""

    rank: int
    step: int
    phase: str
    time_seconds: float
    """What steps and averagings have taken so far."""
    loss: float
    tokens: int
    step_seconds: float
    compute_seconds: float
    compute_cpu_seconds: float
    exchange_seconds: float
    exchange_total_seconds: float
    sync_seconds: float
    gradient_norm: float
    peak_memory_bytes: int | None
    payload_bytes: dict[str, int]
    """By channel."""
    wire_tx_bytes: int | None
    wire_rx_bytes: int | None
    queue_drops: int | None
    relay_drops: int
    backlog_bytes: int | None
    resent: int
    fidelity: dict[str, float | None]
    suspect: Sequence[str]
    valid: bool
    why: Sequence[str]


class MetricsFile:
    """`metrics/rank<k>.jsonl` of one arm."""

    def __init__(self, folder: Path, rank: int) -> None:
        path = _path(folder, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)

    def write(self, line: StepLine, **more: object) -> None:
        """Append one line; `more`: what else JSON can hold, in columns of these names."""
        self._file.write(json.dumps({**line, **more}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cut_metrics(folder: Path, rank: int, step: int) -> None:
    """Leave the lines up to `step`, for a trainer that goes on from there; one that broke off goes too."""
    path = _path(folder, rank)
    if not path.exists():
        return
    draft = path.with_name(path.name + ".part")
    with path.open(errors="replace") as lines, draft.open("w") as kept:
        for text in lines:
            with suppress(ValueError):  # the last line of a rank that was killed
                if json.loads(text)["step"] <= step:
                    kept.write(text.rstrip("\n") + "\n")
    draft.replace(path)


def read_metrics(file: Path) -> tuple[list[StepLine], list[str]]:
    """The lines of a metrics file, and a sentence for each that could not be read (a writer was killed)."""
    lines, problems = [], []
    for number, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            problems.append(f"{file}, line {number} is cut or broken, and left out: {text[:40]!r}")
    return lines, problems


def _path(folder: Path, rank: int) -> Path:
    return folder / "metrics" / f"rank{rank}.jsonl"


_process = psutil.Process()


def system_sample() -> dict[str, float]:
    """This process's resident memory and CPU time, and the share of the machine that was busy since last asked."""
    with _process.oneshot():
        times = _process.cpu_times()
        memory = _process.memory_info().rss
    return {
        "rss_bytes": memory,
        "process_cpu_seconds": times.user + times.system,
        "machine_busy_percent": psutil.cpu_percent(),
    }
