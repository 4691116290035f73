"""What a user may get wrong: one sentence, exit 2, nothing created."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.tiny import PRESET, command, environment, run_testbed
from tests.worlds import needs_world


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bw", "300mbps"], "300mbps"),
        (["--bw", "300kb"], "300kb"),
        (["--bw", "0"], "0"),
        (["--bw", "0mbit"], "0mbit"),
        (["--bw", "-5mbit"], "-5mbit"),
        (["--bw", "fast"], "fast"),
        (["--bw", "300"], "300"),
        (["--bw", "1e400mbit"], "1e400mbit"),
        (["--bw", "300mbit", "--nodes", "1"], "1 nodes"),
        (["--bw", "300mbit", "--nodes", "5"], "512"),
        (["--bw", "300mbit", "--nodes", "16"], "16 nodes"),
        (["--bw", "300mbit", "--accounting", "nic", "--nodes", "4"], "NODES=8"),
        (["--bw", "300mbit", "--preset", "quik"], "quick"),
        (["--bw", "300mbit", "--target", "paper-3b"], "paper-800m"),
        (["--bw", "300mbit", "--pace", "fast"], "fast"),
        (["--bw", "300mbit", "--pace", "none", "--live", "2min"], "STEPS"),
        (["--bw", "300mbit", "--live", "soon"], "soon"),
        (["--bw", "300mbit", "--delay", "20"], "20"),
        (["--bw", "300mbit", "--delay", "-1ms"], "-1ms"),
        (["--bw", "300mbit", "--delay", "20ms"], "netem"),
        (["--bw", "300mbit", "--loss", "1%"], "netem"),
        (["--bw", "300mbit", "--backend", "host", "--delay", "20ms"], "netem"),
        (["--bw", "300mbit", "--loss", "150%"], "150%"),
        (["--bw", "300mbit", "--arms", "latnet"], "latnet"),
        (["--bw", "300mbit", "--name", "../x"], "../x"),
        (["--bw", "300mbit", "--steps", "0"], "0 steps"),
        (["--bw", "300mbit", "--seed", "-1"], "-1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, arguments, named):
    """What was given stands in it; status 2; no traceback, no folder."""
    done = run_testbed(tmp_path, "emulate", *[f"{a}={b}" for a, b in zip(arguments[::2], arguments[1::2], strict=True)])
    assert done.returncode == 2, done.stdout + done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_ambiguous_units_name_both_meanings(tmp_path):
    """Mininet's and others' users have trained at an eighth of the rate they meant."""
    done = run_testbed(tmp_path, "emulate", "--bw", "300mbps")
    assert "mbit" in done.stderr
    assert "byte" in done.stderr.lower()


@pytest.mark.parametrize(
    ("text", "named"),
    [("contxt = 64\n", "context"), ("context = 'long'\n", "context"), ("context = \n", "TOML")],
)
def test_a_wrong_preset_file_names_the_key(tmp_path, text, named):
    """An unknown key names the nearest known one; a wrong type names the key."""
    lines = [line for line in Path(PRESET).read_text().splitlines(keepends=True) if not line.startswith("context")]
    (tmp_path / "mine.toml").write_text(text + "".join(lines))
    done = run_testbed(tmp_path, "emulate", "--bw", "300mbit", "--preset", "mine.toml")
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@needs_world
def test_without_tc_it_says_what_to_install(tmp_path):
    """A machine without iproute2: here, one on which every tc is hidden behind something that is no program."""
    hide = 'for each in /usr/sbin/tc /sbin/tc; do [ -e $each ] && mount --bind /dev/null $each; done; exec "$@"'
    private = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    done = subprocess.run(
        [*private, "sh", "-c", hide, "sh", *command("emulate", "--bw", "300mbit", "--share")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "iproute2" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to take the right to make namespaces away from a child")
def test_without_namespaces_it_says_what_to_allow(tmp_path):
    """A kernel or container that forbids them: refused with the remedy, nothing created."""
    probe = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces"],
        capture_output=True, check=False,
    )  # fmt: skip
    if probe.returncode:
        pytest.skip("this kernel does not let a nested user namespace forbid namespaces")
    done = subprocess.run(
        [
            "unshare", "--user", "--map-root-user", "sh", "-c",
            'for kind in user net mnt; do echo 0 > /proc/sys/user/max_${kind}_namespaces; done; exec "$@"', "sh",
            sys.executable, "-m", "testbed", "emulate", "--bw", "300mbit", "--share",
        ],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "user.max_user_namespaces" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_dry_run_prints_config_and_commands_and_does_nothing(tmp_path):
    """Resolved configuration first, then every command; no privileges, no folder."""
    done = run_testbed(tmp_path, "emulate", "--bw", "300mbit", "--dry-run")
    assert done.returncode == 0, done.stderr
    config, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert config["link"]["rate_bps"] == 300_000_000
    assert "tc" in done.stdout
    assert "300" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_unless_shared(tmp_path):
    """Two runs at once disturb each other's times."""
    from testbed.errors import UsageError
    from testbed.runs import directory

    old, directory._LOCK = directory._LOCK, tmp_path / "lock"
    try:
        with directory.machine_lock(share=False):
            with pytest.raises(UsageError, match="--share"), directory.machine_lock(share=False):
                pass
            with directory.machine_lock(share=True):
                pass
        with directory.machine_lock(share=False):
            pass
    finally:
        directory._LOCK = old


def test_doctor_prints_a_table_and_json(tmp_path):
    """Each capability really tried, with a remedy where it is missing."""
    done = run_testbed(tmp_path, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    for each in json.loads(done.stdout)["capabilities"]:
        assert each["ok"] or each["remedy"] or each["detail"]
    assert run_testbed(tmp_path, "doctor").returncode == 0
