"""Where nodes are asked to be, and cannot: a sentence before anything is created."""

import subprocess

import pytest

from tests.runs.tiny import command, environment

EMULATE = ("emulate", "--bw", "40mbit", "--name", "never")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*EMULATE, "--backend", "docker"), "need no engine"),
        (("verify", "--bw", "40mbit", "--backend", "docker"), "need no engine"),
        (("exec", "--bw", "40mbit", "--backend", "docker", "--", "true"), "need no engine"),
        ((*EMULATE, "--image", "mine"), "--backend docker"),
        (("verify", "--bw", "40mbit", "--image", "mine"), "--backend docker"),
        (("verify", "--bw", "40mbit", "--backend", "host"), "no link"),
        (("verify", "--bw", "40mbit", "--backend", "podman"), "docker"),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(tmp_path, words, said):
    """Status 2; not even a folder for the run."""
    done = subprocess.run(
        command(*words),
        cwd=tmp_path,
        env=environment() | {"DOCKER_HOST": "unix:///nowhere/docker.sock"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_container_would_be_can_be_read_beforehand(tmp_path):
    """A dry run needs no engine: no network of the engine's, no capability, nothing to write to."""
    done = subprocess.run(
        command("verify", "--bw", "40mbit", "--nodes", "2", "--backend", "docker", "--image", "mine", "--dry-run"),
        cwd=tmp_path,
        env=environment() | {"DOCKER_HOST": "unix:///nowhere/docker.sock"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    started = [
        line for line in done.stdout.splitlines() if line.startswith("# by the engine's API: container testbed-")
    ]
    assert len(started) == 2
    for line in started:
        assert "of mine, without network, capabilities, or a root it could write" in line
