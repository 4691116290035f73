"""`testbed exec`, `testbed verify` and `testbed train`: the network and the trainer for other people's programs."""

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO

import pytest

from emulation.nodes.host import free_port
from tests.runs.tiny import PRESET, command, environment, run_testbed
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]

HELLO = """
import os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME",
         "NODE_ADDRS", "NCCL_HOSTID", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE")
print(*(os.environ[name] for name in names))
print("to stderr", file=sys.stderr)
sys.exit(3 if os.environ["RANK"] == "1" else 0)
"""

ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.full((250_000,), float(dist.get_rank() + 1))
dist.all_reduce(total)
print("sum", int(total[0]))
dist.destroy_process_group()
"""

SEND = """
import os, socket, sys, threading
rank, nodes = int(os.environ["RANK"]), os.environ["NODE_ADDRS"].split(",")
size = int(sys.argv[1]) // (1 + 9 * rank)
peer = "127.0.0.1" if "loopback" in sys.argv else nodes[1 - rank]
server = socket.create_server(("0.0.0.0", 9))

def receive():
    connection = server.accept()[0]
    while connection.recv(1 << 16):
        pass

receiver = threading.Thread(target=receive)
receiver.start()
while True:
    try:
        sender = socket.create_connection((peer, 9))
        break
    except ConnectionRefusedError:
        continue
sender.sendall(bytes(size))
sender.close()
receiver.join()
"""
"""Node 0 sends so many bytes to node 1, and that one a tenth; or each to itself."""


def run_exec(folder, *flags, program=(), timeout=60.0, **options):
    """`testbed exec` on two nodes, unless the flags say otherwise, to its end."""
    arguments = ["exec", "--nodes", "2", "--bw", "50mbit", "--share", *flags]
    return subprocess.run(
        command(*arguments, *(["--", *program] if program else [])),
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout, check=False, **options,
    )  # fmt: skip


def python(code, *arguments):
    """A program in this interpreter."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def output_of(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


@contextmanager
def living_exec(folder, *flags, program) -> Iterator[subprocess.Popen[str]]:
    """`testbed exec` while it runs. Whatever happens, it is dead afterwards."""
    process = subprocess.Popen(
        command("exec", "--nodes", "2", "--bw", "50mbit", "--share", *flags, "--", *program),
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


# -- programs


def test_exec_runs_a_program_on_every_node(tmp_path):
    """Environment, prefix of both outputs, and the worst exit status."""
    done = run_exec(tmp_path, "--nodes", "3", program=python(HELLO))
    assert done.returncode == 3, done.stderr
    nodes = "10.77.0.1,10.77.0.2,10.77.0.3"
    environments = [f"n{r}: {r} 3 0 10.77.0.1 29500 eth0 eth0 {nodes} n{r} 1 1 1" for r in range(3)]
    assert sorted(done.stdout.splitlines()) == sorted([*environments, *(f"n{r}: to stderr" for r in range(3))])
    assert "links proven" in done.stderr


def test_output_comes_when_it_is_printed(tmp_path):
    """Though it goes through a pipe, where a program of its own accord would keep it back."""
    code = "import time\nprint('early')\ntime.sleep(3)\nprint('late', end='')"
    with living_exec(tmp_path, program=python(code)) as process:
        early = {output_of(process).readline() for _ in range(2)}
        came = time.monotonic()
        late = output_of(process).read().splitlines()
        assert time.monotonic() - came > 1.5
        assert process.wait(20) == 0
    assert early == {"n0: early\n", "n1: early\n"}
    assert sorted(late) == ["n0: late", "n1: late"]


def test_exec_runs_torch_distributed_unchanged(tmp_path):
    """gloo finds its peers by what is set, and reduces over the links."""
    program = [sys.executable, "-W", "ignore", "-c", ALL_REDUCE]
    done = run_exec(tmp_path, "--bw", "100mbit", "--expect-bytes", "1MB", program=program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "n0: sum 3" in done.stdout
    assert "n1: sum 3" in done.stdout


NAMES = """
import os, socket
own = socket.gethostname()
print(own, os.environ["HOSTNAME"], socket.getfqdn(), *(socket.gethostbyname(name) for name in (own, "n0", "n1", "n2")))
"""


def test_a_node_is_a_host_whose_name_resolves_everywhere(tmp_path):
    """Its own name, and every other node's; the machine's own stays what it was."""
    before = socket.gethostname(), Path("/etc/hosts").read_text()
    done = run_exec(tmp_path, "--nodes", "3", program=python(NAMES))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = sorted(line.partition(": ")[2] for line in done.stdout.splitlines() if ": n" in line)
    for number, line in enumerate(lines):
        name, host, full, own, *others = line.split()
        assert name == host == full == f"n{number}"
        assert own == others[number]
        assert len(set(others)) == 3
    assert len(lines) == 3
    assert (socket.gethostname(), Path("/etc/hosts").read_text()) == before


def test_torchruns_own_rendezvous_meets_by_name(tmp_path):
    """c10d: one node keeps the store, and finds that by its host's name; gloo is not told its interface."""
    program = tmp_path / "program.py"
    program.write_text("import os\nos.environ.pop('GLOO_SOCKET_IFNAME')\n" + ALL_REDUCE)
    run = f"{sys.executable} -W ignore -m torch.distributed.run"
    shell = f"{run} --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id 7 --rdzv-endpoint $MASTER_ADDR:29511"
    done = run_exec(tmp_path, "--bw", "100mbit", program=["sh", "-c", f"{shell} {program}"], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sum 3") == 2


def test_a_child_that_holds_the_output_is_waited_for_and_said_to_be(tmp_path):
    """The program is long gone; its output and status are those of a whole run."""
    code = "import subprocess, sys; subprocess.Popen(['sh', '-c', 'sleep 5; echo late']); print('left', flush=True)"
    done = run_exec(tmp_path, program=python(code))
    assert done.returncode == 0
    assert {"n0: left", "n0: late", "n1: late"} <= set(done.stdout.splitlines())
    for node in ("n0", "n1"):
        assert done.stderr.count(f"{node}: the program has ended, and a process that it started holds its output") == 1


BAR = """
import os, sys, time
for step in range(40):
    sys.stdout.write(f"\\r step {step}"); sys.stdout.flush(); time.sleep(0.1)
print("\\ndone")
if os.environ["RANK"] == "0":
    sys.stdout.write("x" * 200_000); sys.stdout.flush(); time.sleep(0.5)
"""


def test_a_progress_bar_is_seen_while_it_is_drawn(tmp_path):
    """And a line without an end is not kept for ever."""
    with living_exec(tmp_path, program=python(BAR)) as process:
        seen = b""
        while b"step 2" not in seen and (chunk := os.read(output_of(process).fileno(), 1 << 16)):
            seen += chunk
        assert b"done" not in seen
        assert process.poll() is None
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "n0: done" in rest
    assert max(len(line) for line in rest.splitlines()) < 3 << 16


INTERRUPTED = "import time\ntry:\n    print('up'); time.sleep(60)\nexcept KeyboardInterrupt:\n    print('bye')"


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(python(INTERRUPTED), id="itself"),
        pytest.param(["sh", "-c", '"$0" -c "$1"; true', sys.executable, INTERRUPTED], id="child of a shell"),
    ],
)
def test_exec_passes_an_interrupt_on(tmp_path, program):
    """SIGINT reaches the programs, which may say goodbye; status 130."""
    with living_exec(tmp_path, program=program) as process:
        assert {output_of(process).readline() for _ in range(2)} == {"n0: up\n", "n1: up\n"}
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        output, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert {"n0: bye", "n1: bye"} <= set(output.splitlines())
    assert "interrupted" in said
    assert "Traceback" not in said


def test_who_does_not_stop_is_ended(tmp_path):
    """One ignores the interrupt, one has ended and left a child that holds its output, unheard of by it."""
    code = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
if os.environ["RANK"] == "0":
    subprocess.Popen(["sleep", "60"])
    sys.exit(print("left"))
print("stays")
time.sleep(60)
"""
    with living_exec(tmp_path, program=python(code)) as process:
        assert {output_of(process).readline() for _ in range(2)} == {"n0: left\n", "n1: stays\n"}
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("testbed: interrupted")
    assert "Traceback" not in said


# -- bytes


@pytest.mark.parametrize("accounting", ["pair", "nic"])
def test_bytes_are_counted_per_node_and_pair(tmp_path, accounting):
    """Printed at the end and written to a file: what was sent, with every segment's headers."""
    size = 6_000_000
    record = tmp_path / "moved.json"
    done = run_exec(
        tmp_path, "--accounting", accounting, "--record", str(record), "--expect-bytes", "500kB",
        program=python(SEND, size),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())
    wire = size * 1514 / 1448
    acks = size / 1448 * 66
    assert wire * 0.99 < found["sent_bytes"]["n0"] < wire * 1.02 + acks / 10
    assert wire / 10 * 0.99 < found["sent_bytes"]["n1"] < wire / 10 + acks * 1.02
    assert found["received_bytes"]["n1"] == pytest.approx(found["sent_bytes"]["n0"], rel=0.01)
    pairs = {(pair["from"], pair["to"]): pair["bytes"] for pair in found["pairs"]}
    assert set(pairs) == {("n0", "n1"), ("n1", "n0")}
    for (source, _), count in pairs.items():
        assert count == pytest.approx(found["sent_bytes"][source], rel=0.01)
    assert found["exit_status"] == {"n0": 0, "n1": 0}
    assert found["events"] == []
    assert set(found["cpu_seconds"]) == {"n0", "n1"}
    assert found["wall_seconds"] > size * 8 / 50e6
    assert "bytes on the links (layer 2)" in done.stderr
    assert f"{found['sent_bytes']['n0']:,}" in done.stderr


def test_a_program_that_goes_past_its_links_is_found(tmp_path):
    """The same bytes over loopback: the links have not seen them."""
    done = run_exec(tmp_path, "--expect-bytes", "500kB", program=python(SEND, 6_000_000, "loopback"))
    assert done.returncode == 1
    assert "each node was expected to send at least 500kB over its link" in done.stderr
    assert "found another way" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("accounting", ["pair", "nic"])
def test_a_program_that_changes_its_link_is_found(tmp_path, accounting):
    """What it moved then is worth nothing, and no record is written."""
    done = run_exec(
        tmp_path,
        "--accounting",
        accounting,
        "--record",
        "moved.json",
        program=["tc", "qdisc", "del", "dev", "eth0", "root"],
    )
    assert done.returncode == 1
    assert "50mbit was asked for" in done.stderr
    assert "Something else changed the shapers" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "moved.json").exists()


# -- schedules


def schedule(folder, *events):
    """A file of [[at]] tables."""
    file = folder / "schedule.toml"
    file.write_text("\n".join(f"[[at]]\n{event}" for event in events))
    return ["--schedule", str(file)]


COUNT_STARTS = """
import os, sys, time
name = f"{sys.argv[1]}/starts-{os.environ['RANK']}"
with open(name, "a") as file:
    file.write("x")
with open(name) as file:
    starts = len(file.read())
print("start", starts)
if os.environ["RANK"] == "1" and starts == 1:
    time.sleep(60)
"""


def test_a_schedule_restarts_a_program(tmp_path):
    """One that runs is ended first, one that has ended runs again; the status is the last one's."""
    flags = schedule(tmp_path, 'time = "1s"\nfault = "restart"\nnodes = [0, 1]')
    record = tmp_path / "moved.json"
    done = run_exec(tmp_path, *flags, "--record", str(record), program=python(COUNT_STARTS, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()) == [f"n{rank}: start {start}" for rank in (0, 1) for start in (1, 2)]
    assert "nodes 0, 1: restart" in done.stderr
    found = json.loads(record.read_text())
    assert found["exit_status"] == {"n0": 0, "n1": 0}
    assert [event["at_seconds"] for event in found["events"]] == [1.0]
    assert 1.0 <= found["events"][0]["applied_seconds"] < 2.0


TICK = """
import time
for number in range(20):
    print(number, time.monotonic())
    time.sleep(0.1)
"""


def test_a_schedule_kills_one_and_freezes_another(tmp_path):
    """The killed one's status is a shell's; the frozen one pauses and then ends as it should."""
    flags = schedule(
        tmp_path,
        'time = "0s"\nfault = "kill"\nnodes = [0]',
        'time = "1s"\nfault = "freeze"\nnodes = [1]',
        'time = "2.5s"\nfault = "thaw"\nnodes = [1]',
        'time = "2.6s"\nbw = "20mbit"\ndelay = "2ms"',
    )
    record = tmp_path / "moved.json"
    done = run_exec(tmp_path, *flags, "--nodes", "3", "--record", str(record), program=python(TICK))
    assert done.returncode == 137, done.stdout + done.stderr
    found = json.loads(record.read_text())
    assert found["exit_status"] == {"n0": 137, "n1": 0, "n2": 0}
    assert [event["at_seconds"] for event in found["events"]] == [0.0, 1.0, 2.5, 2.6]
    ticks = {name: [] for name in found["exit_status"]}
    for line in done.stdout.splitlines():
        name, _, rest = line.partition(": ")
        ticks[name].append(float(rest.split()[1]))
    assert len(ticks["n0"]) < 20
    assert len(ticks["n1"]) == len(ticks["n2"]) == 20
    pauses = {name: max(b - a for a, b in pairwise(ticks[name])) for name in ("n1", "n2")}
    assert pauses["n1"] > 1.2
    assert pauses["n2"] < 1.2


@pytest.mark.parametrize(
    ("flags", "event", "says"),
    [
        (["--shell", "n9"], None, "there is no node 'n9'; this network's nodes are n0, n1"),
        (["--expect-bytes", "5mb"], None, "'5mb' can mean bits or bytes"),
        (["--record", "nowhere/moved.json"], None, "there is no folder nowhere"),
        ([], 'time = "1s"\nfault = "kill"\nnodes = [7]', "node 7 is not there"),
        (["--shell", "n0"], 'time = "1s"\nfault = "restart"\nnodes = [0]', "restarts a command, and none was given"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(tmp_path, flags, event, says):
    """One sentence, status 2, no program started."""
    program = [] if event and "--shell" in flags else ["touch", str(tmp_path / "started")]
    schedules = schedule(tmp_path, event) if event else []
    done = run_exec(tmp_path, *flags, *schedules, program=program)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "proven" not in done.stderr
    assert not (tmp_path / "started").exists()


# -- shells


def test_a_shell_reads_commands_from_a_pipe(tmp_path):
    """On its node, beside the program, whose output is shown meanwhile and waited for; the worst status of both."""
    code = "import time\nprint('x' * 100_000)\ntime.sleep(1.5)\nprint('done')"
    done = run_exec(
        tmp_path, "--shell", "n1", program=python(code), input="echo I am $RANK at $MASTER_ADDR\nip -br addr\nexit 5\n"
    )  # fmt: skip
    assert done.returncode == 5, done.stdout + done.stderr
    assert "I am 1 at 10.77.0.1" in done.stdout
    assert "10.77.0.2/24" in done.stdout
    assert {"n0: done", "n1: done"} <= set(done.stdout.splitlines())


def test_a_shell_has_a_terminal(tmp_path):
    """Typed into a pseudo-terminal: it answers, knows its width, Ctrl-C ends what runs in it and not the shell."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 33, 123, 0, 0))
    process = subprocess.Popen(
        command("exec", "--nodes", "2", "--bw", "50mbit", "--share", "--shell", "n1"),
        cwd=tmp_path, env={**environment(), "SHELL": "/bin/sh"}, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""

    def read_until(words: bytes) -> None:
        nonlocal said
        end = time.monotonic() + 30
        while words not in said:
            assert time.monotonic() < end, said
            if select.select([ours], [], [], 0.5)[0]:
                try:
                    said += os.read(ours, 4096)
                except OSError:  # the other end has closed
                    break
        assert words in said, said

    try:
        read_until(b"n1$ ")
        os.write(ours, b"stty size; echo rank $RANK; sleep 50\n")
        read_until(b"rank 1")
        time.sleep(0.3)
        os.write(ours, b"\x03")
        time.sleep(0.3)
        os.write(ours, b"echo st''ill; exit 5\n")
        read_until(b"still")
        read_until(b"bytes on the links")
        assert process.wait(20) == 5
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"33 123" in said
    assert b"Traceback" not in said


# -- refusals


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
    phases = {link["phase"] for link in measured["links"]}
    assert phases == {"alone", "8 streams", "32 streams", "together"}
    assert {link["direction"] for link in measured["links"]} == ({"pair"} if accounting == "pair" else {"up", "down"})
    assert measured["problems"] == []
    assert len(measured["round_trips"]) == 6


@pytest.mark.acceptance
def test_train_runs_under_torchrun(tmp_path):
    """The same trainer, started as on real machines; both transports give the same losses."""
    losses = []
    for transport in ("sockets", "distributed"):
        port, folder = str(free_port(["127.0.0.1"])), tmp_path / transport
        folder.mkdir()
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port,
                "-m", "testbed.trainer", "--arm", "latent", "--preset", PRESET, "--steps", "10",
                "--transport", transport,
            ],
            cwd=folder, env={**environment(), "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert sorted((line["rank"], line["step"]) for line in lines) == [(0, 10), (1, 10)]
        losses.append({line["rank"]: line["loss"] for line in lines})
    assert losses[0] == losses[1]


def test_train_without_torchrun_says_how(tmp_path):
    """One sentence, status 2."""
    done = run_testbed(tmp_path, "train")
    assert done.returncode == 2
    assert "torchrun" in done.stderr


@pytest.mark.parametrize("cut", [0, 1])
def test_a_path_that_goes_without_a_word_ends_every_rank(tmp_path, cut):
    """A node's port is taken off the switch while ranks train: each names the other, or the store, and ends."""
    (tmp_path / "cut.toml").write_text(f'[[at]]\ntime = "15s"\nfault = "down"\nnodes = [{cut}]\n')
    program = [sys.executable, "-m", "testbed.trainer", "--preset", PRESET, "--steps", "100000", "--silence", "4"]
    started = time.monotonic()
    done = run_exec(
        tmp_path, "--bw", "20mbit", "--schedule", "cut.toml", program=[*program, "--out", "run"], timeout=150
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert time.monotonic() - started < 90
    assert "n0: rank 0, " in done.stdout
    assert "n1: rank 1, " in done.stdout
    assert "rank 1 has not been heard of for 4 s" in done.stdout
    assert "the store through which the ranks met has not answered for 4 s" in done.stdout
