"""Ranks as real processes, started as torchrun starts them: killed, stopped, resumed, and fed with nonsense."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch.distributed as dist

from emulation.nodes.host import free_port
from tests.runs.tiny import PRESET, environment

pytestmark = pytest.mark.waits

STEPS = 40
SECRET = "what only these ranks know"
"""Without it a rank says that it is not authenticated."""
STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def none_stays() -> Iterator[None]:
    """Whatever happened to the test."""
    yield
    while STARTED:
        rank = STARTED.pop()
        rank.kill()
        rank.wait()
        if rank.stderr is not None:
            rank.stderr.close()


def start(
    folder: Path,
    *arguments: str,
    world: int = 2,
    ranks: Sequence[int] | None = None,
    port: int | None = None,
    apart: bool = False,
    address: str = "127.0.0.1",
    patch: str = "",
) -> list[subprocess.Popen]:
    """`python -m testbed.trainer` on every rank, or on those of `ranks`.

    `port` is an agent's store, without which rank 0 keeps its own. `apart`: each has a disk of its own. `patch` is
    Python that comes first.
    """
    agent = {"TORCHELASTIC_USE_AGENT_STORE": str(port is not None)}
    if port is None:
        port = free_port(["0.0.0.0"])
    preset = folder / "preset.toml"
    if not preset.exists():
        preset.write_text(Path(PRESET).read_text().replace("validation_every = 2", "validation_every = 20"))
    secret = {} if "distributed" in arguments else {"TESTBED_SECRET": SECRET}
    common = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": address, **agent}
    program = f"import os, sys, time\nfrom testbed.trainer.__main__ import main\n{patch}\nsys.exit(main())"
    started = []
    for rank in range(world) if ranks is None else ranks:
        place = folder / f"machine{rank}" if apart else folder
        place.mkdir(exist_ok=True)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, "--preset", str(preset), "--steps", str(STEPS), *arguments],
                cwd=place,
                env={
                    **environment(), **common, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
                    "PYTHONWARNINGS": "ignore", **secret,
                },
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )  # fmt: skip
    STARTED.extend(started)
    return started


def ended(ranks: list[subprocess.Popen], within: float = 120) -> list[str]:
    """What each rank said on its way out."""
    try:
        return [rank.communicate(timeout=within)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def losses(path: Path) -> dict[int, float]:
    """By step; each stands there once, in order, and the clock goes on."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    clock = [line["time_seconds"] for line in lines]
    assert all(after > before for before, after in pairwise([0.0, *clock]))
    return {line["step"]: line["loss"] for line in lines}


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_steps(path: Path, steps: int) -> None:
    wait_for(lambda: path.exists() and path.read_text().count('"loss": ') >= steps)


@pytest.fixture
def agent() -> dist.TCPStore:
    """The store that torchrun's agent keeps."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True)


@pytest.mark.acceptance
def test_a_run_that_is_killed_goes_on_to_the_last_digit(tmp_path):
    """kill -9 of one rank at whatever step it is at: the other ends and says why; resuming changes no digit.

    Each rank has a disk of its own, and the same command begins and goes on.
    """
    assert ended(start(tmp_path, "--arm", "subspace", "--out", "whole")) == ["", ""]
    command = ("--arm", "subspace", "--out", "cut", "--checkpoint-every", "3", "--resume")
    metrics = [tmp_path / f"machine{rank}/cut/metrics/rank{rank}.jsonl" for rank in range(2)]
    ranks = start(tmp_path, *command, apart=True)
    wait_for_steps(metrics[1], 5 + os.getpid() % 7)
    ranks[1].kill()
    (first, _) = ended(ranks, within=60)
    assert ranks[0].returncode == 1
    assert "no rank has a checkpoint in cut/checkpoints: training starts from the beginning" in first
    assert "step " in first
    assert "rank 1" in first
    assert len(losses(metrics[0])) < STEPS
    with metrics[1].open("a") as broken_off:
        broken_off.write('{"rank": 1, "st')
    assert ended(start(tmp_path, *command, apart=True)) == ["", ""]
    for rank in range(2):
        assert losses(metrics[rank]) == losses(tmp_path / f"whole/metrics/rank{rank}.jsonl")


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("the same words for both ranks", "the same words for both ranks", None),
        ("the same words for both ranks", "other words for the second one", "does not know the secret"),
        ("", "", "ranks are not authenticated"),
    ],
)
def test_ranks_prove_that_they_know_the_secret(tmp_path, first, second, says):
    """From files; and where there is none, that is said once."""
    port, ranks = free_port(["0.0.0.0"]), []
    agent = dist.TCPStore("127.0.0.1", port, is_master=True)
    for rank, words in enumerate((first, second)):
        file = tmp_path / f"secret{rank}"
        file.write_text(words + "\n")
        told = ["--secret-file", str(file)] if words else []
        patch = "os.environ.pop('TESTBED_SECRET')"
        ranks += start(tmp_path, "--out", "run", *told, ranks=[rank], port=port, patch=patch)
    said = ended(ranks)
    del agent
    if says is None:
        assert said == ["", ""]
        assert len(losses(tmp_path / "run/metrics/rank0.jsonl")) == STEPS
    elif first:
        assert says in said[1]
        assert [rank.returncode for rank in ranks] == [1, 1]
        assert "words" not in "".join(said)
    else:
        assert says in said[0]
        assert said[1] == ""
        assert [rank.returncode for rank in ranks] == [0, 0]


def test_ranks_meet_over_the_other_family_too(tmp_path):
    """An address of IPv6; the losses are the same."""
    assert ended(start(tmp_path, "--out", "six", address="::1")) == ["", ""]
    assert len(losses(tmp_path / "six/metrics/rank0.jsonl")) == STEPS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give itself another /etc/hosts")
@pytest.mark.parametrize("standalone", [False, pytest.param(True, marks=pytest.mark.acceptance)])
def test_torchrun_trains_where_localhost_is_ipv6_first(tmp_path, standalone):
    """As README types it, and with a rendezvous of its own, on a machine whose hosts file says so."""
    hosts = tmp_path / "hosts"
    name = socket.gethostname()
    hosts.write_text(f"::1 localhost ip6-localhost\n127.0.0.1 localhost\n127.0.0.1 {name}\n")
    shell = 'mount --bind "$0" /etc/hosts && exec "$@"'
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    meet = ["--standalone"] if standalone else ["--master-port", str(free_port(["0.0.0.0"]))]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, str(hosts), *torchrun, *meet, "-m", "testbed.trainer",
         "--preset", PRESET, "--steps", "4", "--out", "run"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path / "run/metrics/rank1.jsonl")) == 4


@pytest.mark.acceptance
def test_a_rank_that_comes_late_is_waited_for_and_heard_meanwhile(tmp_path, agent):
    """Checking a large corpus takes longer than the silence that is allowed; who waits still says that it lives."""
    given = {"port": agent.port, "patch": "time.sleep(5 * (os.environ['RANK'] == '1'))"}
    ranks = start(tmp_path, "--steps", "2", "--silence", "3", ranks=[0], **given)
    wait_for(lambda: agent.check(["testbed/alive/0"]) and int(agent.get("testbed/alive/0").split()[0]) >= 3)
    ranks += start(tmp_path, "--steps", "2", "--silence", "3", ranks=[1], **given)
    assert ended(ranks) == ["", ""]
    assert [rank.returncode for rank in ranks] == [0, 0]


@pytest.mark.acceptance
def test_a_rank_that_is_done_early_costs_the_others_nothing(tmp_path):
    """Rank 1 is 6 s longer about its last checkpoint, and rank 0 keeps the store."""
    slow = """
from testbed.trainer import checkpoint
save = checkpoint.save
checkpoint.save = lambda *given, **more: (time.sleep(6 * (os.environ["RANK"] == "1")), save(*given, **more))
"""
    ranks = start(tmp_path, "--steps", "2", "--silence", "3", "--out", "run", patch=slow)
    assert ended(ranks) == ["", ""]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert len([*tmp_path.glob("run/checkpoints/step00000002/rank*.json")]) == 2


def test_torch_distributed_meets_without_torchrun_and_names_who_is_lost(tmp_path):
    """Over gloo, with rank 0's own store; a rank is killed, and no traceback follows."""
    ranks = start(tmp_path, "--steps", "100000", "--transport", "distributed", "--out", "run")
    wait_for_steps(tmp_path / "run/metrics/rank1.jsonl", 3)
    ranks[1].kill()
    (first, _) = ended(ranks, within=60)
    assert ranks[0].returncode == 1
    assert re.search(r"rank 0 lost its connection to rank 1: .*Connection (reset|closed)", first), first
    assert "Traceback" not in first


def test_a_rank_that_stands_still_ends_the_run_with_its_name(tmp_path):
    """SIGSTOP: connections stay open, only the silence tells."""
    ranks = start(tmp_path, "--steps", "100000", "--out", "run", "--silence", "3")
    wait_for_steps(tmp_path / "run/metrics/rank1.jsonl", 5)
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


LATE = """
from testbed.trainer.rendezvous import Meeting
told = Meeting._told
Meeting._told = lambda self, what, other: (time.sleep(self.rank), told(self, what, other))[1]
"""


@pytest.mark.parametrize("late", ["", LATE])
def test_ranks_that_were_started_differently_do_not_train(tmp_path, late):
    """Nothing that they would have learned together means anything. Rank 1 hears so from rank 0, which keeps the store,
    also where it is slow to listen."""
    ranks = start(tmp_path, patch=f"{late}\nsys.argv += ['--seed', os.environ['RANK']]")
    for each in ended(ranks):
        assert "train on another seed: 0 there, 1 here" in each.replace("\n", " ")
        assert "Traceback" not in each
    assert [rank.returncode for rank in ranks] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arm", "lattent"), "'lattent' is no arm and no installed codec; .* did you mean 'latent'?"),
        (("--config", "missing.toml"), "missing.toml cannot be read"),
        (("--config", "bad.toml"), "bad.toml: unknown key 'armm'; did you mean 'arm'?"),
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
