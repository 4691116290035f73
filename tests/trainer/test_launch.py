"""Ranks as real processes, started as torchrun starts them: killed, stopped, resumed, and fed with nonsense."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs.tiny import PRESET, environment

pytestmark = pytest.mark.alone

STEPS = 40


def start(folder: Path, *arguments: str, world: int = 2) -> list[subprocess.Popen]:
    """`python -m testbed.trainer` on every rank."""
    preset = folder / "preset.toml"
    if not preset.exists():
        preset.write_text(Path(PRESET).read_text().replace("validation_every = 2", "validation_every = 20"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "testbed.trainer", "--preset", "preset.toml", "--steps", str(STEPS), *arguments],
            cwd=folder,
            env={
                **environment(), **common, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
                "PYTHONWARNINGS": "ignore",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]  # fmt: skip


def ended(ranks: list[subprocess.Popen], within: float = 120) -> list[str]:
    """What each rank said on its way out."""
    try:
        return [rank.communicate(timeout=within)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def losses(folder: Path, rank: int = 0) -> dict[int, float]:
    """By step, the last line of each, as a resumed run goes over some steps again."""
    lines = [json.loads(text) for text in (folder / f"metrics/rank{rank}.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def wait_for_steps(folder: Path, steps: int) -> None:
    path, deadline = folder / "metrics/rank1.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_text().count('"loss": ') < steps:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_is_killed_goes_on_to_the_last_digit(tmp_path):
    """kill -9 of one rank at whatever step it is at: the other ends and says why; resuming changes no digit."""
    assert [*ended(start(tmp_path, "--arm", "subspace", "--out", "whole"))] == ["", ""]
    ranks = start(tmp_path, "--arm", "subspace", "--out", "cut", "--checkpoint-every", "3")
    wait_for_steps(tmp_path / "cut", 5 + os.getpid() % 7)
    ranks[1].kill()
    (first, _) = ended(ranks, within=30)
    assert ranks[0].returncode == 1
    assert "step " in first
    assert "rank 1" in first
    assert len(losses(tmp_path / "cut")) < STEPS
    assert [*ended(start(tmp_path, "--arm", "subspace", "--out", "cut", "--resume"))] == ["", ""]
    for rank in range(2):
        assert losses(tmp_path / "cut", rank) == losses(tmp_path / "whole", rank)


def test_a_rank_that_stands_still_ends_the_run_with_its_name(tmp_path):
    """SIGSTOP: connections stay open, only the silence tells."""
    ranks = start(tmp_path, "--steps", "100000", "--out", "run", "--silence", "3")
    wait_for_steps(tmp_path / "run", 5)
    ranks[1].send_signal(signal.SIGSTOP)
    try:
        said = ranks[0].communicate(timeout=30)[1]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[0].returncode == 1
    assert "rank 1 has not been heard of for 3 s (last: " in said
    assert "run/metrics/rank1.jsonl" in said


def test_nan_stops_with_the_step(tmp_path):
    """A learning rate that explodes."""
    preset = Path(PRESET).read_text().replace("sync_every = 2", "sync_every = 2\nlearning_rate = 1e30")
    (tmp_path / "wild.toml").write_text(preset)
    said = ended(start(tmp_path, "--preset", "wild.toml"))
    assert any("the run ends here" in each and "step " in each for each in said)
    assert not any("Traceback" in each for each in said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arm", "lattent"), "'lattent' is no arm and no installed codec; .* did you mean 'latent'?"),
        (("--config", "missing.toml"), "missing.toml cannot be read"),
        (("--config", "bad.toml"), "bad.toml: unknown key 'armm'; did you mean 'arm'?"),
        (("--resume",), "there is no checkpoint in runs/train/checkpoints"),
        (("--arm", "ulysses", "--config", "three.toml"), "do not divide by 3 ranks"),
        (("--preset", "paper-800m"), "is no corpus"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, said):
    """Exit status 2, no traceback."""
    import re

    (tmp_path / "bad.toml").write_text('armm = "latent"\n')
    text = Path(PRESET).read_text().replace("context = 64", "context = 96")
    (tmp_path / "preset.toml").write_text(text.replace("task_chunks = 4", "task_chunks = 3"))
    (tmp_path / "three.toml").write_text("seed = 1\n")
    world = 3 if "three.toml" in arguments else 1
    ranks = start(tmp_path, *arguments, world=world)
    told = ended(ranks)
    assert [rank.returncode for rank in ranks] == [2] * world
    for each in told:
        assert re.search(said.replace("?", r"\?"), each.replace("\n", " ")), each
        assert "Traceback" not in each
