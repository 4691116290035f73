"""A disk that is really full, at whatever moment: said with the remedy, nothing half written, and the same typed again
after there is room goes on or begins anew."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.tiny import PRESET, TARGET, command, environment
from tests.sweep.tiny import grid
from tests.worlds import needs_world

pytestmark = [
    pytest.mark.world,
    needs_world,
    pytest.mark.acceptance,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a small disk of its own"),
]

ROOT = Path(__file__).resolve().parents[2]
EMULATE = (
    "emulate",
    "--bw",
    "50mbit",
    "--nodes",
    "2",
    "--preset",
    PRESET,
    "--arms",
    "control",
    "--name",
    "run",
    "--share",
)
LEARN = f"""
title = "Small"
presets = ["{PRESET}"]
seeds = [0]
nodes = 2
arms = ["decentralised", "control"]
"""
TRAIN = ("--preset", PRESET, "--steps", "8", "--checkpoint-every", "2", "--out", "out", "--resume")
SHELL = """
set -e
mount -t tmpfs -o size=$0k small "$1"
cd "$1"
cp "$2"/* .
shift 2
set +e
"$@" >/tmp/said.$$ 2>&1
echo "first $?"; cat /tmp/said.$$
find . -name FAILED -size 0 | sed 's/^/EMPTY /'
python3 - <<'END'
import json, pathlib
for path in pathlib.Path().rglob("*.json"):
    json.loads(path.read_text() or "null") if path.name != "state.json" else None
END
echo "whole $?"
mount -o remount,size=200m "$(pwd)"
RUNS
"$@" >/tmp/said.$$ 2>&1
echo "second $?"; cat /tmp/said.$$; rm -f /tmp/said.$$
"""
COMMANDS = {
    "emulate": (command(*EMULATE, "--target", TARGET), (40, 230, 500, 1400)),
    "sweep": (command("sweep", "grid.toml"), (40, 300)),
    "learn": (command("learn", "learn.toml"), (40, 200)),
    "prepare": (command("data", "prepare", "texts.jsonl", "--out", "data"), (60, 200)),
    "train": ([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29431",
               "-m", "testbed.trainer", *TRAIN], (40, 600)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kib"), [(name, kib) for name, (_, sizes) in COMMANDS.items() for kib in sizes])
def test_a_full_disk_is_said_and_nothing_finished_is_lost(tmp_path, name, kib):
    disk, files = tmp_path / "disk", tmp_path / "files"
    disk.mkdir()
    files.mkdir()
    grid(files, seeds=(0,), arms=("decentralised", "control"), points=("50mbit", "60mbit"))
    (files / "learn.toml").write_text(LEARN)
    rows = (json.dumps({"text": f"Number {k}. " + "All of this is made up. " * 20}) for k in range(60))
    (files / "texts.jsonl").write_text("\n".join(rows) + "\n")
    again = "mv runs/run runs/first 2>/dev/null" if name == "emulate" else ""
    runs = (
        " ".join(command("runs")) + f" >/tmp/runs.$$ 2>&1; echo runs $?; cat /tmp/runs.$$; rm -f /tmp/runs.$$; {again}"
    )
    argv, _ = COMMANDS[name]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SHELL.replace("RUNS", runs), str(kib), str(disk), str(files), *argv],
        cwd=Path(tmp_path), env=environment(), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    print(said)
    first, _, rest = said.partition("\nwhole ")
    assert rest.startswith("0"), said
    assert "EMPTY" not in first
    assert f'File "{ROOT}/testbed' not in said  # torchrun has tracebacks of its own
    assert "\nruns 0" in rest
    if "first 0" not in first:
        assert "make room" in first, said
        assert "No space left on device" in first or "is full" in first, said
    assert "\nsecond 0" in rest, said
