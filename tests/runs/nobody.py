"""An ordinary user, without any right."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.runs.tiny import command, environment

__all__ = ["NOBODY", "as_nobody", "nobodys"]

NOBODY = 65534


def nobodys(argv: Sequence[str], *, groups: Sequence[int] = ()) -> list[str]:
    """A command of that user's; `groups`: of which they are a member all the same.

    The interpreter may lie in root's home: that user is shown this one folder of it, in a mount namespace of ours.
    """
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root; everything else in these tests ran without it")
    prefix = Path(sys.base_prefix)
    home = Path(*prefix.parts[:2])
    member = f"--groups {','.join(map(str, groups))}" if groups else "--clear-groups"
    user = f"setpriv --reuid {NOBODY} --regid {NOBODY} {member}"
    script = f"""
set -e
mount --make-rprivate /
if ! {user} test -r {prefix}/lib; then
    mkdir -p /tmp/.python-seen-by-all && mount --bind {prefix} /tmp/.python-seen-by-all
    mount -t tmpfs -o mode=755 tmpfs {home}
    mkdir -p {prefix} && mount --bind /tmp/.python-seen-by-all {prefix}
fi
exec {user} "$@"
"""
    return ["unshare", "--mount", "sh", "-c", script, "sh", *argv]


def as_nobody(
    folder: Path, *arguments: str, groups: Sequence[int] = (), timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """`testbed` as that user, in a folder of theirs."""
    return subprocess.run(
        nobodys(command(*arguments), groups=groups),
        cwd=folder,
        env={**environment(), "HOME": str(folder), "MPLCONFIGDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
