"""A whole comparison as an ordinary user."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.tiny import PRESET, command, environment
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]
NOBODY = "65534"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can write to, and reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_emulate_works_without_root(open_folder):
    """Links proven, ranks trained, nothing needed that only root has; the files are the user's own."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root; everything else in these tests ran without it")
    # The interpreter may lie in root's home: show the other user that one folder of it, in a mount namespace of ours.
    prefix = Path(sys.base_prefix)
    home = Path(*prefix.parts[:2])
    script = f"""
set -e
mount --make-rprivate /
if ! setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups test -r {prefix}/lib; then
    mkdir -p /tmp/.python-seen-by-all && mount --bind {prefix} /tmp/.python-seen-by-all
    mount -t tmpfs -o mode=755 tmpfs {home}
    mkdir -p {prefix} && mount --bind /tmp/.python-seen-by-all {prefix}
fi
exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"
"""
    emulate = command(
        "emulate", "--bw", "50mbit", "--pace", "none", "--steps", "2", "--arms", "latent,control", "--nodes", "2",
        "--preset", PRESET, "--name", "run", "--share",
    )  # fmt: skip
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *emulate],
        cwd=open_folder,
        env={**environment(), "HOME": str(open_folder), "MPLCONFIGDIR": str(open_folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "links proven before" in done.stdout
    comparison = open_folder / "runs" / "run" / "comparison.json"
    assert comparison.stat().st_uid == int(NOBODY)
    arms = json.loads(comparison.read_text())["arms"]
    assert [arm["link"] for arm in arms] == ["shaped", "shaped"]
