"""A line per step and rank, append-only JSON, flat keys with units; and what the process had of the machine."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["MetricsFile", "cut_metrics", "read_metrics", "system_sample"]


class MetricsFile:
    """`metrics/rank<k>.jsonl` of one arm."""

    def __init__(self, folder: Path, rank: int) -> None:
        path = _path(folder, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")

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


def read_metrics(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
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
