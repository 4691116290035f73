"""Nobody can keep others from running by what he puts in the place of the lock, or by holding it."""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.rundir.machine_lock import machine_lock

NAMES = ("slowlink-testbed.lock", "slowlink-testbed.shared.lock")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where the locks are, and a home for one's own."""
    monkeypatch.setattr("testbed.rundir.machine_lock._FOLDER", tmp_path / "locks")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "locks").mkdir()
    return tmp_path / "locks"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "put",
    [
        pytest.param(os.mkfifo, id="pipe"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="link"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
    ],
)
def test_what_is_no_file_is_not_waited_for(folder, capsys, name, put):
    """The run goes on with a lock of the user's own, which keeps a second one of his away."""
    put(folder / name)
    started = time.monotonic()
    with machine_lock(share=False):
        assert f"{name} is no" in capsys.readouterr().err
        with pytest.raises(UsageError, match="--share"), machine_lock(share=False):
            pass
    assert time.monotonic() - started < 5


@pytest.fixture
def stranger(folder):
    """A process that is no run holds the lock, for as long as it likes."""
    (folder / NAMES[0]).touch()
    code = 'exec 9<"$FILE" && flock 9 && echo held && exec sleep 60'
    with subprocess.Popen(
        ["sh", "-c", code], env={**os.environ, "FILE": str(folder / NAMES[0])}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_holds_it_without_a_run_keeps_nobody_from_working(stranger, capsys):
    """With a warning that names it, where it can be seen."""
    with machine_lock(share=False):
        said = capsys.readouterr().err
    assert "which is no run of this testbed" in said
    assert "a lock of yours alone, and does not see runs of other users" in said


def test_a_run_that_holds_it_is_named(folder, tmp_path):
    """By process and user; when it has gone the lock is free."""
    program = tmp_path / "testbed"
    program.write_text(
        "import fcntl, sys, time\nfile = open(sys.argv[1])\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(60)\n"
    )
    (folder / NAMES[0]).touch()
    with subprocess.Popen(
        ["python3", str(program), str(folder / NAMES[0])], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        named = rf"another run \(process {process.pid} of \w+\)"
        with pytest.raises(UsageError, match=named), machine_lock(share=False):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with machine_lock(share=False), open(folder / NAMES[0]) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
