"""`testbed sweep` as a user types it: links that cannot be had, losses that are not the learned ones, mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from testbed.config import Arm
from testbed.driver.results import ArmResult
from testbed.errors import RunFailed
from testbed.records import Validation
from testbed.sweep.worker import Trained, check_learned
from tests.runs.tiny import command, environment, run_testbed
from tests.sweep.tiny import ARMS, grid
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]
TALK = """
import json, os, socket, sys
size, seed, rank = int(sys.argv[1]), int(sys.argv[2]), int(os.environ["RANK"])
addresses, port = os.environ["NODE_ADDRS"].split(","), int(os.environ["MASTER_PORT"])
if rank == 0:
    with socket.create_server((addresses[0], port)) as server:
        connection, _ = server.accept()
        connection.sendall(bytes(size))
else:
    import time
    while True:
        try:
            connection = socket.create_connection((addresses[0], port))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    got = 0
    while got < size:
        got += len(connection.recv(1 << 16))
    print(json.dumps({"size": got}))
    print("no { json }")
sys.exit(3 if seed == 2 else 0)
"""
"""A program that sends, says what has arrived, and ends with status 3 with the second seed."""


def learned_before(swept: Path, folder: Path) -> dict[str, Path]:
    """What another sweep has learned with its first seed, in a new one's folder: by exchange, of what is not
    compressed."""
    place = folder / "runs" / "grid" / "learned"
    shutil.copytree(swept / "runs" / "grid" / "learned", place)
    found = {file: json.loads(file.read_text())["config"] for file in place.glob("*.json")}
    arms = {file: config["arm"] for file, config in found.items() if config["seed"] == 0}
    return {arm["exchange"]: file for file, arm in arms.items() if arm["codec"]["name"] == "exact"}


def test_a_link_that_cannot_be_had_fails_its_cells_only(swept, tmp_path):
    """They are named at the end with the reason; status 1; the others are done."""
    learned_before(swept, tmp_path)
    grid(tmp_path, seeds=(0,), arms=("decentralised", "control"), points=("40mbit", "90gbit"), more='loss = ["1%"]')
    done = run_testbed(tmp_path, "sweep", "grid.toml", "--no-report")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "logs of what failed: runs/grid/logs" in done.stdout
    assert "beyond this machine" in done.stdout
    record = json.loads((tmp_path / "runs" / "grid" / "sweep.json").read_text())
    assert record["states"]["failed"] == 2
    table = pd.read_parquet(tmp_path / "runs" / "grid" / "results.parquet")
    assert set(table[table["state"] == "failed"]["bw"]) == {"90gbit"}
    assert set(table[table["bw"] == "40mbit"]["state"]) <= {"done", "invalid"}  # a busy machine's relay is late
    assert table[table["state"] == "failed"]["why"].str.contains("beyond this machine").all()


def one_bit(learned: dict) -> None:
    learned["rank_losses"][0][0][0] *= 1 + 2**-52


def a_millionth(learned: dict) -> None:
    learned["losses"][1] = round(learned["losses"][1] + 1e-6, 6)


@pytest.mark.parametrize(
    ("change", "of", "words", "cells", "check"),
    [
        (one_bit, 1, "to the last bit", {"done": 1, "failed": 1}, "invalid"),  # nothing to hold it against
        pytest.param(a_millionth, 2, "on this link is", {"done": 2}, "failed", marks=pytest.mark.acceptance),
    ],
)
def test_losses_that_are_not_the_learned_ones_fail_the_cell(swept, tmp_path, change, of, words, cells, check):
    """Negative control of the comparison with what was learned, of timed steps and of a check's every step: that cell,
    and no other."""
    grid(tmp_path, seeds=(0,), arms=("decentralised", "control"), points=("80mbit",))
    folder, files = tmp_path / "runs" / "grid", learned_before(swept, tmp_path)
    for exchange in ("all-gather", "local")[:of]:
        learned = json.loads(files[exchange].read_text())
        change(learned)
        files[exchange].write_text(json.dumps(learned))
    done = run_testbed(tmp_path, "sweep", "grid.toml", "--no-report")
    assert done.returncode == 1
    assert words in done.stdout
    assert "FAILED" in done.stdout
    record = json.loads((folder / "sweep.json").read_text())
    assert record["states"] == cells
    assert record["checks"][0]["state"] == check


def trained(*, losses: tuple[float, ...] = (), validations: tuple[Validation, ...] = ()) -> Trained:
    return Trained(nodes=2, losses=losses, rank_losses=[], validations=validations)


def test_a_step_of_a_check_whose_loss_is_another_by_a_millionth_is_noticed():
    """As it is written down, with six digits."""
    steps: Any = [SimpleNamespace(loss=2.5), SimpleNamespace(loss=2.25 + 1e-7)]
    result = ArmResult(arm=Arm(name="a", exchange="local", sync="average", link="bw"), link="shaped", plan=None)
    result.steps = steps
    check_learned(result, trained(losses=(2.5, 2.25)))
    with pytest.raises(RunFailed, match=r"step 1: the loss on this link is 2\.25, and 2\.250001 was learned"):
        check_learned(result, trained(losses=(2.5, 2.250001)))


def test_a_validation_that_is_another_by_a_bit_is_noticed():
    """Of what a check trained, at the steps at which both were validated; others are nobody's."""
    arm, link = Arm(name="a", exchange="local", sync="average", link="bw"), "shaped"
    same, another = Validation(step=4, val_loss=1.5), Validation(step=4, val_loss=1.5 * (1 + 2**-52))
    result = ArmResult(arm=arm, link=link, plan=None, validations=[same])
    check_learned(result, trained(validations=(Validation(step=2, val_loss=9.0), same)))
    with pytest.raises(RunFailed, match=r"validated 1\.5 on this link"):
        check_learned(result, trained(validations=(another,)))


@pytest.mark.acceptance
def test_in_full_every_cell_is_trained_and_its_time_is_measured(tmp_path):
    """To the end: curves are measured, and each is held against its composed twin."""
    grid(tmp_path, seeds=(0,), arms=("decentralised", "control"), points=("80mbit",))
    done = run_testbed(tmp_path, "sweep", "grid.toml", "--full")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "grid"
    assert set(pd.read_parquet(folder / "curves.parquet")["time_kind"]) == {"measured"}
    checks = json.loads((folder / "sweep.json").read_text())["checks"]
    assert {(check["arm"], check["seed"], check["state"]) for check in checks} == {
        (arm, 0, "done") for arm in ("decentralised", "control")
    }
    assert all(abs(check["difference"]) < 0.15 for check in checks)


def test_parts_make_the_whole(tmp_path):
    """--shard 1/2 and 2/2 have every cell once between them, the arms of a point together."""
    grid(tmp_path, points=("40mbit", "80mbit", "90mbit"))
    lines = {}
    for part in ("1/2", "2/2"):
        done = run_testbed(tmp_path, "sweep", "grid.toml", "--shard", part, "--dry-run")
        lines[part] = {line.split(maxsplit=2)[2] for line in done.stdout.splitlines() if line.startswith("missing")}
    check = "subspace at bw 90mbit, 2 steps with seed 0"
    assert lines["1/2"] == {check} | {f"{arm} at bw {bw}" for arm in ARMS for bw in ("40mbit", "90mbit")}
    assert lines["2/2"] == {f"{arm} at bw 80mbit" for arm in ARMS}
    for wrong in ("3/2", "0/2", "1", "a/b"):
        done = run_testbed(tmp_path, "sweep", "grid.toml", "--shard", wrong, "--dry-run")
        assert (done.returncode, "such as 1/3" in done.stderr) == (2, True)


def test_a_command_of_the_users_is_swept(tmp_path):
    """Wall time, bytes per node and pair, status and what it said are columns; a status that is not 0 is a result."""
    (tmp_path / "talk.py").write_text(TALK)
    (tmp_path / "mine.toml").write_text(
        f"""
title = "Mine"
command = [{json.dumps(sys.executable)}, "talk.py", "{{size}}", "{{seed}}"]
seeds = [1, 2]
[settings]
nodes = 2
[grid]
bw = ["40mbit"]
var.size = [100000, 400000]
"""
    )
    done = run_testbed(tmp_path, "sweep", "mine.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_parquet(tmp_path / "runs" / "mine" / "results.parquet")
    assert table[["var.size", "seed", "said_size"]].to_numpy().tolist() == [
        [100000, 1, 100000],
        [100000, 2, 100000],
        [400000, 1, 400000],
        [400000, 2, 400000],
    ]
    assert set(table["exit_status"]) == {0, 3}
    sent = table.set_index(["var.size", "seed"])["bytes_n0_to_n1"]
    assert (sent[400000] - sent[100000]).between(300_000, 330_000).all()
    report = run_testbed(tmp_path, "report", "mine")
    assert report.returncode == 0
    assert "said_size" in (tmp_path / "runs" / "mine" / "report.html").read_text()
    again = run_testbed(tmp_path, "sweep", "mine.toml")
    assert "4 there, 0 to run" in again.stdout
    wrong = (tmp_path / "mine.toml").read_text().replace("{seed}", "{sed}")
    (tmp_path / "wrong.toml").write_text(wrong)
    refused = run_testbed(tmp_path, "sweep", "wrong.toml")
    assert (refused.returncode, "{sed} stands for nothing" in refused.stderr) == (2, True)


def test_bad_input_leaves_nothing(tmp_path):
    """One sentence, status 2, no folder."""
    file = grid(tmp_path, more="dealy = ['1ms']")
    for change, said in (
        ({}, "did you mean 'delay'?"),
        ({"dealy = ['1ms']": "delay = ['1parsec']"}, "at preset"),
        ({"dealy = ['1ms']": "", '"control"]': '"contrl"]'}, "did you mean 'control'?"),
        ({"dealy = ['1ms']": "", ', "control"]': "]"}, "'control' is none of the arms"),
        ({"dealy = ['1ms']": "", "nodes = 2": "nodes = 3"}, "type NODES=2"),
        ({"dealy = ['1ms']": "preset.batch = [0]"}, "batch = 0"),
        (
            {
                "dealy = ['1ms']": "",
                "nodes = 2": "nodes = 2\naccounting = 'nic'",
                "[settings]": "timed_nodes = 2\n[settings]",
            },
            "timed_nodes",
        ),
    ):
        text = file.read_text()
        for old, new in change.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "bad.toml").write_text(text)
        done = run_testbed(tmp_path, "sweep", "bad.toml")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert said in done.stderr
    done = run_testbed(tmp_path, "sweep", "nothing.toml")
    assert (done.returncode, "nothing.toml" in done.stderr) == (2, True)
    assert not (tmp_path / "runs").exists()
    assert sorted(os.listdir(tmp_path)) == ["bad.toml", "grid.toml"]


def test_containers_without_an_engine_are_refused_before_anything_is_made(tmp_path):
    """Of arms and of commands alike."""
    grid(tmp_path, more="backend = ['docker']")
    (tmp_path / "mine.toml").write_text(
        'title = "Mine"\ncommand = ["true"]\n[settings]\nbackend = "docker"\nbw = "40mbit"\n'
    )
    for file in ("grid.toml", "mine.toml"):
        done = subprocess.run(
            command("sweep", file),
            cwd=tmp_path,
            env=environment() | {"DOCKER_HOST": "unix:///nowhere/docker.sock"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert "need no engine" in done.stderr
        assert not list((tmp_path / "runs").glob("*/*"))
