"""`testbed exec`, `testbed verify` and `testbed train`: the network and the trainer for other people's programs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.runs.tiny import PRESET, command, environment, run_testbed
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]

HELLO = """
import os, socket, sys
print(os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], os.environ["MASTER_ADDR"],
      os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"], len(os.environ["NODE_ADDRS"].split(",")))
sys.exit(3 if os.environ["RANK"] == "1" else 0)
"""

ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.full((1000,), float(dist.get_rank() + 1))
dist.all_reduce(total)
print("sum", int(total[0]))
"""


def test_exec_runs_a_program_on_every_node(tmp_path):
    """Environment, prefix, and the worst exit status."""
    done = run_testbed(
        tmp_path, "exec", "--nodes", "3", "--bw", "100mbit", "--share", "--", sys.executable, "-c", HELLO
    )
    assert done.returncode == 3, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert lines == [f"n{rank}: {rank} 3 0 10.77.0.1 eth0 eth0 3" for rank in range(3)]
    assert "links proven" in done.stderr


def test_exec_runs_torch_distributed_unchanged(tmp_path):
    """gloo finds its peers by what is set."""
    program = [sys.executable, "-W", "ignore", "-c", ALL_REDUCE]
    done = run_testbed(tmp_path, "exec", "--nodes", "2", "--bw", "100mbit", "--share", "--", *program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "n0: sum 3" in done.stdout
    assert "n1: sum 3" in done.stdout


def test_exec_passes_an_interrupt_on(tmp_path):
    """SIGINT reaches the programs, which may say goodbye; status 130."""
    code = "import time\ntry:\n    print('up'); time.sleep(60)\nexcept KeyboardInterrupt:\n    print('bye')"
    process = subprocess.Popen(
        command("exec", "--nodes", "2", "--bw", "100mbit", "--share", "--", sys.executable, "-u", "-c", code),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        seen = [process.stdout.readline() for _ in range(2)]
        assert {line.strip() for line in seen} == {"n0: up", "n1: up"}
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert {"n0: bye", "n1: bye"} <= set(output.splitlines())


def test_exec_without_a_command_is_refused(tmp_path):
    """One sentence, status 2."""
    done = run_testbed(tmp_path, "exec", "--bw", "100mbit")
    assert done.returncode == 2
    assert "--" in done.stderr


def test_a_missing_program_is_named(tmp_path):
    """No traceback; the shell's own status for it."""
    done = run_testbed(tmp_path, "exec", "--nodes", "2", "--bw", "100mbit", "--share", "--", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("accounting", ["pair", "nic"])
def test_verify_measures_every_link(tmp_path, accounting):
    """Table, JSON, exit status; both directions, alone and together."""
    done = run_testbed(
        tmp_path, "verify", "--bw", "50mbit", "--nodes", "3", "--accounting", accounting, "--share", "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(done.stdout)
    assert {link["phase"] for link in measured["links"]} == {"alone", "together"}
    assert {link["direction"] for link in measured["links"]} == ({"pair"} if accounting == "pair" else {"up", "down"})
    assert measured["problems"] == []
    assert len(measured["round_trips"]) == 6


@pytest.mark.parametrize("transport", ["sockets", "distributed"])
def test_train_runs_under_torchrun(tmp_path, transport):
    """The same trainer, started as on real machines; both transports give the same losses."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29731",
            "-m", "testbed", "train", "--arm", "latent", "--preset", PRESET, "--steps", "10", "--transport", transport,
        ],
        cwd=tmp_path, env={**environment(), "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted((line["rank"], line["step"]) for line in lines) == [(0, 10), (1, 10)]
    losses = {line["rank"]: line["loss"] for line in lines}
    assert _SEEN.setdefault("losses", losses) == losses


_SEEN: dict[str, dict[int, float]] = {}


def test_train_without_torchrun_says_how(tmp_path):
    """One sentence, status 2."""
    done = run_testbed(tmp_path, "train")
    assert done.returncode == 2
    assert "torchrun" in done.stderr
