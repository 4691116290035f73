"""Containers as nodes, on a real engine: links as of namespaces, training, what containers may not, and their end."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from emulation.kernel.process_tag import mark, sees
from emulation.nodes.engine import OWNER, RUN, SEEN_BY, engine_address
from tests.docker.conftest import IMAGE, build, fill
from tests.docker.own_engine import BASE, make_base
from tests.runs.nobody import NOBODY, as_nobody, nobodys
from tests.runs.test_execute import ALL_REDUCE
from tests.runs.tiny import PRESET, TARGET, command, environment, run_testbed
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world, pytest.mark.timeout(900)]  # the first builds an image
RENAME = "import socket; socket.sethostname('x')"
LINK = ("--bw", "60mbit", "--delay", "10ms", "--accounting", "nic")


USERS = ["root", "member of the socket's group"]
"""Of an engine: containers are shaped by the one himself, and beside them for the other."""
BESIDE_FIRST = [pytest.param(USERS[0], marks=pytest.mark.acceptance), USERS[1]]


def on(backend: str, image: str) -> tuple[str, ...]:
    """Flags."""
    return ("--backend", backend, *(("--image", image) if backend == "docker" else ()))


def typed_by(user: str, *arguments: str) -> list[str]:
    """`testbed` with these arguments, by this user."""
    if user == "root":
        return command(*arguments)
    path = engine_address().removeprefix("unix://")
    return nobodys(command(*arguments), groups=[os.stat(path).st_gid])


def run(user: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """To its end, in a folder that every user may write to."""
    return subprocess.run(
        typed_by(user, *arguments),
        cwd=folder,
        env=environment() | {"HOME": str(folder), "MPLCONFIGDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def ours() -> list[str]:
    return docker("ps", "-aq", "--filter", f"label={OWNER}").split()


def left_folders() -> list[Path]:
    """Of drivers of any user, whether they live or not."""
    return list(Path(tempfile.gettempdir()).glob("testbed-node.*"))


def waits_for(what, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("backend", "user", "nodes"),
    [
        pytest.param("netns", "root", "4", marks=pytest.mark.acceptance),
        *(pytest.param("docker", user, "4", marks=pytest.mark.acceptance) for user in USERS),
        *(("docker", user, "2") for user in USERS),
    ],
)
def test_links_are_what_was_asked_on_both_backends(backend, user, nodes, image, shaper_image, open_folder):
    """The same tolerances."""
    done = run(user, open_folder, "verify", *LINK, "--nodes", nodes, *on(backend, image), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, found["problems"]
    assert found["ok"]
    assert found["network"]["backend"] == backend
    if backend == "docker":
        assert found["network"]["shaped_by"] == ("root" if user == "root" else "sidecars")
    assert {ping["lost"] for ping in found["round_trips"]} == {0}


def trained(folder: Path, name: str, backend: str, user: str, image: str) -> dict[str, Any]:
    """A comparison; of at most three, the first that this machine let measure in peace."""
    for number in range(3):
        done = run(
            user,
            folder,
            *("emulate", "--bw", "40mbit", "--preset", PRESET, "--target", TARGET, "--nodes", "2", "--budget", "2s"),
            *(
                "--arms",
                "decentralised,subspace,control",
                *on(backend, image),
                "--name",
                f"{name}{number}",
                "--no-report",
            ),
        )
        place = folder / "runs" / f"{name}{number}"
        if done.returncode == 0:
            record = json.loads((place / "comparison.json").read_text())
            if all(arm["valid"] for arm in record["arms"]):
                break
    assert done.returncode == 0, name + done.stdout + done.stderr
    assert (place / "logs" / "rank0.log").stat().st_uid == (0 if user == "root" else NOBODY)
    return record


@pytest.mark.acceptance
def test_arms_are_trained_and_take_as_long_as_in_namespaces(image, shaper_image, open_folder):
    """Paced steps within 10 %; the same losses; every byte on the ledger; nothing is left; files are the user's."""
    seconds, losses = {}, {}
    (open_folder / "runs").mkdir()
    (open_folder / "runs").chmod(0o777)
    entered, beside = (("docker", user) for user in USERS)
    for name, (backend, user) in {"netns": ("netns", "root"), "entered": entered, "beside": beside}.items():
        record = trained(open_folder, name, backend, user, image)
        assert record["backend"] == backend
        seconds[name] = {arm["arm"]: arm["step_seconds_mean"] for arm in record["arms"]}
        losses[name] = {arm["arm"]: arm["final_val_loss"] for arm in record["arms"]}
        for arm in record["arms"]:
            assert arm["valid"], arm["why"]
            assert arm["ledger"]["largest_difference"] < 0.01
        assert ours() == []
    assert losses["beside"] == losses["entered"] == losses["netns"]  # of the same text, to the last bit
    for arm, expected in seconds["netns"].items():
        for name in ("beside", "entered"):
            assert seconds[name][arm] == pytest.approx(expected, rel=0.1), (name, arm)
    assert left_folders() == []


TICK = """
import time
for number in range(60):
    print(number, flush=True)
    time.sleep(0.1)
"""
FAULTS = """
[[at]]
time = "2s"
fault = "kill"
nodes = [0]
[[at]]
time = "2s"
fault = "freeze"
nodes = [1]
[[at]]
time = "4s"
fault = "thaw"
nodes = [1]
[[at]]
time = "4s"
bw = "20mbit"
delay = "2ms"
"""


@pytest.mark.parametrize("user", BESIDE_FIRST)
def test_programs_links_that_change_and_nodes_that_fail(user, image, shaper_image, open_folder):
    """exec with a schedule: what is killed in a container has a shell's status, what was frozen goes on."""
    (open_folder / "faults.toml").write_text(FAULTS)
    done = run(
        user,
        open_folder,
        *("exec", "--bw", "40mbit", "--nodes", "2", *on("docker", image), "--schedule", "faults.toml"),
        *("--accounting", "nic", "--record", "moved.json", "--", "python", "-c", TICK),
    )
    assert done.returncode == 137, done.stdout + done.stderr
    found = json.loads((open_folder / "moved.json").read_text())
    assert found["exit_status"] == {"n0": 137, "n1": 0}
    assert found["cpu_seconds"] == {}, "the time of the engine's client was taken for the program's"
    assert len(found["events"]) == 4
    said = done.stdout.splitlines()
    assert len([line for line in said if line.startswith("n1:")]) == 60
    assert 0 < len([line for line in said if line.startswith("n0:")]) < 60


@pytest.mark.acceptance
def test_torchruns_own_rendezvous_meets_by_name(image, tmp_path):
    """c10d in containers: one node keeps the store, and finds that by its host's name."""
    run_it = "python -W ignore -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id 7"
    program = (
        f"cat > /tmp/program.py <<'END'\n{ALL_REDUCE}END\n{run_it} --rdzv-endpoint $MASTER_ADDR:29511 /tmp/program.py"
    )
    words = ("exec", "--bw", "100mbit", "--nodes", "2", *on("docker", image), "--", "sh", "-c", program)
    done = run("root", tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sum 3") == 2


@pytest.mark.parametrize("user", BESIDE_FIRST)
def test_a_kill_finds_a_program_that_has_just_been_started(user, image, shaper_image, open_folder):
    """As a schedule may want it at 0 s: while it is still the engine's to start."""
    (open_folder / "kill.toml").write_text('[[at]]\ntime = "0s"\nfault = "kill"\nnodes = [0, 1, 2]\n')
    done = run(
        user,
        open_folder,
        *("exec", "--bw", "40mbit", "--nodes", "3", *on("docker", image), "--schedule", "kill.toml"),
        *("--record", "moved.json", "--", "sleep", "20"),
    )
    assert done.returncode == 137, done.stdout + done.stderr
    found = json.loads((open_folder / "moved.json").read_text())
    assert found["exit_status"] == dict.fromkeys(("n0", "n1", "n2"), 137)


def start(user: str, folder: Path, name: str) -> subprocess.Popen[bytes]:
    """A run that trains live for as long as anybody lets it."""
    return subprocess.Popen(
        typed_by(
            user,
            *("emulate", "--bw", "40mbit", "--preset", PRESET, "--target", TARGET, "--nodes", "2", "--name", name),
            *("--live", "60s", *on("docker", IMAGE), "--arms", "decentralised,control", "--steps", "200"),
        ),
        cwd=folder,
        env=environment(name) | {"HOME": str(folder), "MPLCONFIGDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def trains(folder: Path, name: str) -> bool:
    file = folder / "runs" / name / "decentralised" / "metrics" / "rank0.jsonl"
    return file.is_file() and file.stat().st_size > 0


NET_ADMIN = 1 << 12
"""capabilities(7)."""


@pytest.mark.parametrize("user", BESIDE_FIRST)
def test_containers_may_nothing_and_end_with_their_driver(user, image, shaper_image, open_folder):
    """While it trains: a node has no capability, no network of the engine's, nothing to write to; what shapes has
    NET_ADMIN. kill -9: gone in 5 s."""
    process = start(user, open_folder, "killed")
    try:
        assert waits_for(lambda: trains(open_folder, "killed"), 90), f"it ended with {process.poll()}"
        beside = {"n0-shaper": NET_ADMIN, "n1-shaper": NET_ADMIN, "switch": NET_ADMIN}
        rights = {"n0": 0, "n1": 0} | (beside if user != "root" else {})
        assert len(ours()) == len(rights)
        for name, right in rights.items():
            container = f"testbed-killed-{name}"
            for process_id in ("1", "self"):
                status = docker("exec", container, "cat", f"/proc/{process_id}/status")
                lines = [line for line in status.splitlines() if line.startswith(("CapEff", "CapBnd"))]
                assert {int(line.split()[1], 16) for line in lines} == {right}
            about = json.loads(docker("inspect", container))[0]
            assert about["HostConfig"]["NetworkMode"].startswith("container:" if "shaper" in name else "none")
            assert about["HostConfig"]["ReadonlyRootfs"]
            assert about["Config"]["Labels"][RUN] == "killed"
            refused = subprocess.run(
                ["docker", "exec", container, "sh", "-c", "echo > /x"], capture_output=True, check=False
            )
            assert refused.returncode
            refused = subprocess.run(
                ["docker", "exec", container, "python", "-c", RENAME], capture_output=True, check=False
            )
            assert b"PermissionError" in refused.stderr
        again = run(user, open_folder, "emulate", "--bw", "40mbit", *on("docker", IMAGE), "--name", "killed")
        assert again.returncode == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert waits_for(lambda: not ours(), 5), docker("ps", "-a")
    done = run(user, open_folder, "verify", "--bw", "40mbit", "--nodes", "2", *on("docker", IMAGE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert left_folders() == []


@pytest.mark.parametrize("lost", ["n1-shaper", pytest.param("switch", marks=pytest.mark.acceptance)])
def test_a_lost_shaper_ends_the_run(lost, image, shaper_image, open_folder):
    """Nothing is measured without it, and nothing is left."""
    process = start(USERS[1], open_folder, "lost")
    try:
        assert waits_for(lambda: trains(open_folder, "lost"), 90), f"it ended with {process.poll()}"
        docker("rm", "-f", f"testbed-lost-{lost}")
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        process.wait()
    assert ours() == []
    assert left_folders() == []


def sleeper(image: str, *labels: str) -> str:
    """A container that does nothing; its id."""
    named = [word for label in labels for word in ("--label", label)]
    return docker("run", "-d", "--network", "none", *named, image, "sleep", "60")


def test_what_a_dead_driver_left_is_removed_and_nothing_else(image, tmp_path):
    """By label and by whether its driver lives, where that can be known; one without our label is not ours."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    gone, here = f"{OWNER}={dead.pid}:1", f"{SEEN_BY}={sees()}"
    left = sleeper(image, gone, here)
    kept = [
        sleeper(image, f"{OWNER}={mark()['TESTBED_WORLD']}", here),
        sleeper(image, gone, f"{SEEN_BY}=1"),
        sleeper(image),
    ]
    try:
        done = run_testbed(tmp_path, "clean")
        assert done.returncode == 0, done.stderr
        assert "removed 1 container" in done.stdout
        there = docker("ps", "-aq", "--no-trunc").split()
        assert left not in there
        assert set(kept) <= set(there)
    finally:
        subprocess.run(["docker", "rm", "-f", left, *kept], capture_output=True, check=False)


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (("--image", "nosuchimage"), {}, "make image"),
        ((), {"DOCKER_HOST": "unix:///nowhere/docker.sock"}, "need no engine"),
        ((), {"DOCKER_HOST": "tcp://10.0.0.1:2375"}, "another machine"),
    ],
)
def test_bad_input_is_one_sentence(image, tmp_path, words, variables, said):
    """Status 2, nothing created."""
    done = subprocess.run(
        command("verify", "--bw", "40mbit", "--nodes", "2", "--backend", "docker", *words),
        cwd=tmp_path,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert said in done.stderr
    assert ours() == []


@pytest.mark.parametrize(
    ("groups", "words", "said"),
    [((), (), "sudo usermod -aG docker"), (None, ("--image", "alpine"), "no image 'alpine-shaper'")],
)
def test_without_root_it_says_what_is_missing(image, open_folder, groups, words, said):
    """The right to use the engine, and an image of what shapes."""
    path = engine_address().removeprefix("unix://")
    asked = ("verify", "--bw", "40mbit", "--nodes", "2", "--backend", "docker", *words)
    done = as_nobody(open_folder, *asked, groups=[os.stat(path).st_gid] if groups is None else groups)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert said in done.stderr
    assert ours() == []


def test_another_runs_names_are_not_taken(image, tmp_path):
    """Said before anything is made; what a dead driver left is in nobody's way."""
    other = docker("run", "-d", "--network", "none", "--name", "testbed-busy-n1", image, "sleep", "60")
    try:
        done = run_testbed(
            tmp_path, "emulate", "--bw", "40mbit", "--preset", PRESET, *on("docker", IMAGE), "--name", "busy"
        )
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
        assert "another run is called 'busy'" in done.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        docker("rm", "-f", other)


def test_an_image_of_other_sources_is_refused(image, tmp_path):
    """What is measured is what one reads: said before anything is made, of programs that only measure links too."""
    changed = docker(
        *("run", "-d", "--network", "none", "--user", "0:0", image),
        *("sh", "-c", "echo >> /opt/testbed/src/emulation/measure/probe_agent.py"),
    )
    try:
        docker("wait", changed)
        docker("commit", changed, f"{IMAGE}-changed")
        done = run_testbed(tmp_path, "verify", "--bw", "40mbit", "--nodes", "2", *on("docker", f"{IMAGE}-changed"))
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
        assert "other sources" in done.stderr
    finally:
        subprocess.run(["docker", "rm", "-f", changed], capture_output=True, check=False)
        subprocess.run(["docker", "rmi", "-f", f"{IMAGE}-changed"], capture_output=True, check=False)


@pytest.mark.acceptance
def test_an_image_is_built_from_a_bare_python(engine, tmp_path):
    """With every package installed by the Dockerfile, from wheels; `testbed` runs in it, also as nobody."""
    base, made = f"{BASE}-bare", f"{IMAGE}-bare"
    make_base(base, packages=False)
    try:
        build(fill(tmp_path, ".", "setuptools"), made, base=base)
        said = docker("run", "--rm", "--network", "none", "--read-only", made, "testbed", "presets")
        assert "preset" in said
        assert "torch" in docker("run", "--rm", "--network", "none", made, "python", "-c", "import torch; print(torch)")
    finally:
        subprocess.run(["docker", "rmi", "-f", made, base], capture_output=True, check=False)


@pytest.mark.acceptance
def test_a_sweep_learns_here_and_times_in_containers(image, tmp_path):
    """The first losses in the containers are those learned in this machine's own processes."""
    (tmp_path / "grid.toml").write_text(
        f"""
title = "A tiny grid"
arms = ["decentralised", "control"]
seeds = [0]
[settings]
preset = {json.dumps(PRESET)}
target = {json.dumps(TARGET)}
nodes = 2
budget = "2s"
backend = "docker"
image = {json.dumps(image)}
[grid]
bw = ["40mbit"]
"""
    )
    done = run_testbed(tmp_path, "sweep", "grid.toml", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "runs" / "grid" / "sweep.json").read_text())["states"] == {"done": 2}
    assert ours() == []
    # another image by the same name: what was timed in the one is not taken for the other's
    assert "another state" not in run_testbed(tmp_path, "sweep", "grid.toml", "--dry-run").stdout
    docker("tag", image, f"{IMAGE}-before")
    changed = docker("run", "-d", "--network", "none", "--user", "0:0", image, "sh", "-c", "echo more > /etc/more")
    try:
        docker("wait", changed)
        docker("commit", changed, image)
        said = run_testbed(tmp_path, "sweep", "grid.toml", "--dry-run").stdout
        assert "cells are there of another state (image) and left aside: --keep-older" in " ".join(said.split())
        assert "there  " not in said
    finally:
        docker("rm", "-f", changed)
        docker("tag", f"{IMAGE}-before", image)
        docker("rmi", f"{IMAGE}-before")
