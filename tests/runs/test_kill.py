"""Invariant 6: whatever dies, nothing is left, and a lost rank is named."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.runs.tiny import PRESET, TARGET, command, environment, marked
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]
GONE_SECONDS = 5.0
SLOW = pytest.mark.acceptance


def link(pid: int | str, kind: str) -> str | None:
    """The namespace of a process, or None if it has gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None


def family(mark: str) -> list[int]:
    """Our marked processes, and every process of a pid namespace that one of them lives in: the ranks too."""
    ours = marked(mark)
    worlds = {link(pid, "pid") for pid in ours} - {link("self", "pid"), None}
    inside = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and link(pid, "pid") in worlds]
    return sorted({*ours, *inside})


def ranks_of(mark: str) -> list[int]:
    """Pids, on this host, of the run's ranks, in order."""
    found = {}
    for pid in family(mark):
        with suppress(OSError):
            if b"testbed.driver.rank" in Path(f"/proc/{pid}/cmdline").read_bytes():
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                found[next(v for v in variables if v.startswith(b"RANK="))] = pid
    return [found[key] for key in sorted(found)]


class Traces:
    """What a run holds on this machine while it lives."""

    def __init__(self, mark: str) -> None:
        self.pids = family(mark)
        self.network_namespaces = {link(pid, "net") for pid in self.pids} - {link("self", "net"), None}
        self.interfaces = set(os.listdir("/sys/class/net"))

    def left(self, mark: str) -> list[str]:
        """What is still there."""
        holders = {link(pid, "net") for pid in os.listdir("/proc") if pid.isdigit()}
        named = [
            folder
            for folder in ("/run/netns", "/var/run/netns")
            if os.path.isdir(folder) and "n0" in os.listdir(folder)
        ]
        processes = [f"process {pid}" for pid in {*family(mark), *(p for p in self.pids if link(p, "pid"))}]
        namespaces = [f"namespace {name}" for name in self.network_namespaces & holders]
        ours = {"br0", "eth0", "sw0", "sw1"} - self.interfaces
        return [
            *processes,
            *namespaces,
            *named,
            *(f"interface {i}" for i in ours & set(os.listdir("/sys/class/net"))),
        ]

    def gone(self, mark: str) -> bool:
        """Whether nothing is left within the time allowed."""
        deadline = time.monotonic() + GONE_SECONDS
        while self.left(mark):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@contextmanager
def training(folder: Path, mark: str) -> Iterator[subprocess.Popen[str]]:
    """`testbed emulate` once its ranks are taking steps. Whatever happens, it is dead afterwards."""
    arguments = (
        "emulate",
        "--bw",
        "50mbit",
        "--pace",
        "none",
        "--steps",
        "100000",
        "--nodes",
        "2",
        "--preset",
        PRESET,
    )
    process = subprocess.Popen(
        command(*arguments, "--name", "run", "--share", "--arms", "decentralised"),
        cwd=folder, env=environment(mark), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        metrics = folder / "runs" / "run" / "decentralised" / "metrics" / "rank1.jsonl"
        deadline = time.monotonic() + 90
        while not (metrics.exists() and metrics.stat().st_size > 2000):
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline, "no step within 90 s"
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def first_process(mark: str) -> int:
    """The world's process 1, as this host numbers it."""
    for pid in marked(mark):
        status = Path(f"/proc/{pid}/status").read_text()
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
        if len(numbers) > 1 and numbers[-1] == "1":
            return pid
    raise AssertionError("no first process found")


@pytest.mark.parametrize("victim", ["driver", "rank", pytest.param("first process", marks=pytest.mark.acceptance)])
def test_kill_nine_leaves_nothing(tmp_path, victim):
    """SIGKILL of the driver, of a rank, of the world's first process, while it trains."""
    mark = f"kill-{victim.replace(' ', '-')}-{os.getpid()}"
    with training(tmp_path, mark) as process:
        assert len(ranks_of(mark)) == 2
        traces = Traces(mark)
        assert len(traces.network_namespaces) in (3, 4)  # the driver's, the nodes', the switch's while it is read
        pid = {
            "driver": lambda: process.pid,
            "rank": lambda: ranks_of(mark)[1],
            "first process": lambda: first_process(mark),
        }[victim]()
        os.kill(pid, signal.SIGKILL)
        assert process.wait(30) != 0
        assert traces.gone(mark), traces.left(mark)
        assert not (tmp_path / "runs" / "run" / "comparison.json").exists()
        if victim == "rank":
            assert process.stdout is not None
            output = process.stdout.read()
            assert "rank 1 on node n1 was killed by signal 9" in output
            assert "rank1.log" in output
            assert "killed by signal 9" in (tmp_path / "runs" / "run" / "FAILED").read_text()


PHASES = {
    "proof": "",
    "warm start": "warm start, once",
    "learn": "learn control",
    "time": "timed step 1",
    "synchronise": "timed step 2",
}
"""Of a paced run, and the line after which it is in one (weights are averaged after every second step); proof: as soon
as there is a delay line."""
IN_PHASE = [
    pytest.param(phase, victim, marks=[] if (phase, victim) in {("time", "delay line"), ("proof", "driver")} else SLOW)
    for phase in PHASES
    for victim in ("driver", "rank", "first process", "delay line")
    if (phase, victim) != ("proof", "rank")
]


def delay_line_of(mark: str) -> int | None:
    """The relay's pid on this host."""
    for pid in family(mark):
        with suppress(OSError):
            if b"emulation.shaping.delay_line" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def till_phase(process: subprocess.Popen[str], mark: str, phase: str) -> list[str]:
    """Read what the run says until it is there."""
    said: list[str] = []
    if phase == "proof":
        deadline = time.monotonic() + 60
        while delay_line_of(mark) is None:
            assert process.poll() is None
            assert time.monotonic() < deadline, "no delay line within a minute"
            time.sleep(0.02)
        return said
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if PHASES[phase] in line:
            time.sleep(0.1)  # into it
            return said
    raise AssertionError(f"it ended before: {''.join(said)}")


@pytest.mark.parametrize(("phase", "victim"), IN_PHASE)
def test_kill_nine_in_each_phase_of_a_paced_run_leaves_nothing(tmp_path, phase, victim):
    """Whoever dies: nothing is left, no result is there, and who is left says who has gone."""
    mark = f"kill-{phase}-{victim}-{os.getpid()}".replace(" ", "-")
    arguments = ("--bw", "50mbit", "--delay", "5ms", "--nodes", "2", "--preset", PRESET, "--target", TARGET)
    process = subprocess.Popen(
        command("emulate", *arguments, "--arms", "control", "--name", "run", "--share", "--no-report"),
        cwd=tmp_path, env=environment(mark), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        till_phase(process, mark, phase)
        traces = Traces(mark)
        pid = {
            "driver": lambda: process.pid,
            "rank": lambda: ranks_of(mark)[1],
            "first process": lambda: first_process(mark),
            "delay line": lambda: delay_line_of(mark),
        }[victim]()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        said = process.communicate(timeout=60)[0]
        assert process.returncode != 0, said
        assert traces.gone(mark), traces.left(mark)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    folder = tmp_path / "runs" / "run"
    assert not (folder / "comparison.json").exists()
    assert not list(folder.rglob("*.html"))
    if victim in ("rank", "delay line"):
        assert {"rank": "rank 1 on node n1 was killed by signal 9", "delay line": "relay ended"}[victim] in said
        assert (folder / "FAILED").read_text()
    assert "Traceback" not in said


def test_the_check_notices_what_is_left(tmp_path):
    """Negative control: a process with our mark that lives on fails the check above."""
    mark = f"left-{os.getpid()}"
    sleeper = subprocess.Popen(["sleep", "60"], env=environment(mark))
    try:
        time.sleep(0.1)
        assert marked(mark) == [sleeper.pid]
        assert not Traces(mark).gone(mark)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_kernel_shows_the_asked_rate_and_an_interrupt_takes_everything_down(tmp_path):
    """While it trains, `tc -s class` inside a node, from outside; then Ctrl-C: status 130, FAILED says so, nothing is
    left."""
    mark = f"interrupt-{os.getpid()}"
    with training(tmp_path, mark) as process:
        for pid in ranks_of(mark):
            enter = (
                ["nsenter", f"--user=/proc/{pid}/ns/user", "--preserve-credentials"] if os.geteuid() else ["nsenter"]
            )
            done = subprocess.run(
                [*enter, f"--net=/proc/{pid}/ns/net", "tc", "-s", "class", "show", "dev", "eth0"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert "rate 50Mbit" in done.stdout
        traces = Traces(mark)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        assert traces.gone(mark), traces.left(mark)
    assert "interrupted" in (tmp_path / "runs" / "run" / "FAILED").read_text()
