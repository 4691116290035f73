"""A line per step and rank, append-only JSON, flat keys with units; and what the process had of the machine."""

import json
from pathlib import Path
from typing import Any

import psutil

__all__ = ["MetricsFile", "system_sample"]


class MetricsFile:
    """`metrics/rank<k>.jsonl` of one arm."""

    def __init__(self, folder: Path, rank: int) -> None:
        path = folder / "metrics" / f"rank{rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
