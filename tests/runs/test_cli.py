"""What a user may get wrong: one sentence, exit 2, nothing created."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.rundir.machine_lock import machine_lock
from tests.runs.tiny import PRESET, command, environment, run_testbed
from tests.worlds import needs_world


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bw", "300mbps"], "type 300mbit for bits, or 2400mbit for bytes"),
        (["--bw", "300kbps"], "type 300kbit for bits, or 2400kbit for bytes"),
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
        (["--bw", "300mbit", "--backend", "host", "--delay", "20ms"], "netns"),
        (["--bw", "300mbit", "--backend", "host", "--network", "islands"], "netns"),
        (["--bw", "300mbit", "--loss", "150%"], "150%"),
        (["--bw", "300mbit", "--loss", "100%"], "100%"),
        (["--bw", "300mbit", "--jitter", "2ms"], "delay"),
        (["--bw", "300mbit", "--loss-burst", "3"], "loss above 0%"),
        (["--bw", "300mbit", "--loss-burst", "three"], "three"),
        (["--bw", "300mbit", "--queue", "deep"], "--queue"),
        (["--bw", "300mbit", "--mtu", "100"], "576"),
        (["--bw", "300mbit", "--nodes", "many"], "--nodes: 'many' is no whole number"),
        (["--bw", "300mbit", "--distribution", "gauss"], "normal, pareto, uniform"),
        (["--bw", "300mbit", "--down", "1gbit"], "--accounting nic"),
        (["--bw", "300mbit", "--dealy", "20ms"], "--dealy=20ms"),
        (["--network", "cabel"], "did you mean 'cable'"),
        (["--network", "cable", "--accounting", "pair"], "nic"),
        (["--preset", "quick"], "BW=300mbit"),
        (["--bw", "300mbit", "--arms", "latnet"], "did you mean 'latent'"),
        (["--bw", "300mbit", "--arms", "ring"], "PACE=none"),
        (["--bw", "300mbit", "--preset", "quick", "--arms", "no-cp"], "set batch = 4"),
        (["--bw", "300mbit", "--pace", "none", "--arms", "ulysses", "--nodes", "8"], "do not divide by 8"),
        (["--bw", "300mbit", "--arms", "latent+int9"], "int9"),
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


@pytest.mark.parametrize(
    ("files", "arguments", "named"),
    [
        ({"t.csv": "seconds,rate_bps\n0,1000000\n5,fast\n"}, ["--schedule", "t.csv"], "t.csv, line 3: 'fast'"),
        ({"t.toml": '[[at]]\ntime = "1s"\nnodes = [9]\nbw = "1mbit"\n'}, ["--schedule", "t.toml"], "node 9"),
        ({"t.toml": '[[at]]\ntime = "1s"\nnodes = [1]\nfault = "explode"\n'}, ["--schedule", "t.toml"], "explode"),
        ({}, ["--schedule", "t.csv"], "t.csv"),
        ({"t.txt": "0\n"}, ["--schedule", "t.txt"], "t.txt"),
        ({"t.csv": "seconds,rate_bps\n0,1000000\n"}, ["--schedule", "t.csv", "--live", ""], "LIVE"),
        (
            {
                "m.toml": 'name = "m"\nsource = "none"\naccounting = "pair"\n[matrix]\nregions = ["a", "b"]\n'
                'rate = [["1mbit", "1mbit"]]\n'
            },
            ["--network", "m.toml"],
            "write 2 rows of 2 values",
        ),
    ],
)
@pytest.mark.parametrize("name", ["emulate", "exec"])
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, name, files, arguments, named):
    """Where in the file the mistake is; status 2; nothing created."""
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    given = {"--bw": "300mbit", "--live": "2min"} if "--network" not in arguments else {"--live": "2min"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    if name == "exec" and given.pop("--live") == "":
        pytest.skip("of training only")
    flags = [f"{flag}={value}" for flag, value in given.items() if value]
    done = run_testbed(tmp_path, name, *flags, *(["--", "true"] if name == "exec" else []))
    assert done.returncode == 2, done.stdout + done.stderr
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("network", ["cable", "islands", "lte"])
def test_a_network_by_name_can_be_looked_at(tmp_path, network):
    """Its links, each command, and of access links as many as the target has nodes."""
    done = run_testbed(tmp_path, "emulate", "--network", network, "--dry-run")
    assert done.returncode == 0, done.stderr
    config, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert config["link"]["rate_bps"] > 0
    assert config["nodes"] == (4 if network == "islands" else 8)
    assert bool(config["network"]["links_that_differ"]) == (network == "islands")
    assert "tc -n n0" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_can_be_looked_at(tmp_path):
    """What happens, and when, in the dry run's configuration."""
    (tmp_path / "t.csv").write_text("seconds,rate_bps\n0,1000000\n5,2000000\n")
    done = run_testbed(tmp_path, "emulate", "--bw", "5mbit", "--live", "2min", "--schedule", "t.csv", "--dry-run")
    assert done.returncode == 0, done.stderr
    config, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert [event["what"] for event in config["schedule"]] == ["all links: bw 1mbit", "all links: bw 2mbit"]


_COMMANDS = ("emulate", "verify", "exec", "train", "learn", "sweep", "report", "presets", "doctor", "runs", "clean")


@pytest.mark.parametrize("command_name", _COMMANDS)
def test_help_explains_every_flag(tmp_path, command_name):
    """No flag without a sentence, no `None`."""
    done = run_testbed(tmp_path, command_name, "--help")
    assert done.returncode == 0
    assert "None" not in done.stdout
    inside = [line.strip("│ ") for line in done.stdout.splitlines() if line.startswith("│")]
    for number, line in enumerate(inside):
        if line.startswith("--"):
            explained = "  " in line or (number + 1 < len(inside) and not inside[number + 1].startswith("-"))
            assert explained, line


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_flag_that_is_not_there_names_the_nearest(tmp_path, monkeypatch, encoding):
    """Not the parser's box, but a sentence; the box looks another way where the terminal is none of UTF-8."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = run_testbed(tmp_path, "verify", "--bw", "300mbit", "--dealy", "20ms")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr == "testbed: Unrecognized options: --dealy, 20ms; did you mean --delay TIME?\n"
    other = run_testbed(tmp_path, "learn", "x.toml", "--share")  # of another command
    assert (other.returncode, "did you mean" in other.stderr, "--help" in other.stderr) == (2, False, True)


@pytest.mark.parametrize(
    ("options", "variables"),
    [(("-O", "-m", "testbed", "runs"), {}), (("-m", "testbed.trainer"), {"PYTHONOPTIMIZE": "1"})],
)
def test_python_without_assertions_is_refused(tmp_path, options, variables):
    """A payload that is not the closed form would go on without a word there."""
    done = subprocess.run(
        [sys.executable, *options], cwd=tmp_path, env={**environment(), **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "unset PYTHONOPTIMIZE, leave out -O" in done.stderr


def test_ambiguous_units_name_both_meanings(tmp_path):
    """Mininet's and others' users have trained at an eighth of the rate they meant."""
    done = run_testbed(tmp_path, "emulate", "--bw", "300mbps")
    assert "mbit" in done.stderr
    assert "byte" in done.stderr.lower()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("contxt = 64\n", "context"),
        ("context = 'long'\n", "context"),
        ("context = \n", "TOML"),
        ("context = 0\n", "context = 0"),
        ("context = 63\n", "task_chunks"),
        ("context = 64\nclip = -1\n", "clip"),
    ],
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
        timeout=180,
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


def test_a_second_run_is_refused_unless_shared(tmp_path, monkeypatch):
    """Two runs at once disturb each other's times."""
    monkeypatch.setattr("testbed.rundir.machine_lock._FOLDER", tmp_path)
    with machine_lock(share=False):
        with pytest.raises(UsageError, match="--share"), machine_lock(share=False):
            pass
        with machine_lock(share=True):
            pass
    with (
        machine_lock(share=True),
        machine_lock(share=True),
        pytest.raises(UsageError, match="--share"),
        machine_lock(share=False),
    ):
        pass
    with machine_lock(share=False):
        pass
    assert (tmp_path / "slowlink-testbed.lock").stat().st_mode & 0o777 == 0o444  # any user's next run can lock it


def test_doctor_prints_a_table_and_json(tmp_path):
    """Each capability really tried, with a remedy where it is missing; the status says whether a run could be."""
    done = run_testbed(tmp_path, "doctor", "--json")
    found = json.loads(done.stdout)["capabilities"]
    able = all(each["ok"] for each in found if each["needed"])
    assert done.returncode == (0 if able else 1), done.stderr
    for each in found:
        assert set(each) == {"name", "ok", "detail", "remedy", "needed"}
        assert each["ok"] or each["remedy"]
    table = run_testbed(tmp_path, "doctor")
    assert table.returncode == done.returncode
    assert all(each["name"] in table.stdout for each in found)
    assert list(tmp_path.iterdir()) == []


def test_reading_only_the_beginning_is_no_error(tmp_path):
    """`testbed … | head -1`."""
    process = subprocess.Popen(
        command("emulate", "--bw", "300mbit", "--dry-run"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert b"Traceback" not in errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    """Before anything is built."""
    tmp_path.chmod(0o555)
    done = run_testbed(tmp_path, "emulate", "--bw", "300mbit")
    assert done.returncode == 2
    assert "write" in done.stderr


def test_constants_agree():
    """What settings check without torch is what the rooms that need torch say."""
    from testbed.codecs.subspace import SUB_CHUNKS
    from testbed.settings import emulate as settings

    assert settings.SUB_CHUNKS == SUB_CHUNKS
