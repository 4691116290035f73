"""The same without root: in a user namespace, as an ordinary user."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulation.conftest import PRELUDE, ROOT

pytestmark = pytest.mark.world

NOBODY = "65534"
CODE = (
    PRELUDE
    + """
def main():
    network = net(2, "100mbit", "pair")
    with NetnsBackend(network) as backend:
        measured = verify.verify(backend, network)
        print(json.dumps([os.getuid(), measured["ok"], [each["ratio"] for each in measured["links"]]]))
    return 0
assert os.getuid() == %s
sys.exit(run_in_world(main))
"""
    % NOBODY
)


def test_a_network_is_built_and_verified_without_root(tmp_path):
    if os.getuid() != 0 or not (shutil.which("setpriv") and shutil.which("unshare")):
        pytest.skip("becoming another user needs root, setpriv and unshare")
    prefix = Path(sys.executable).resolve().parents[1]
    stage = tmp_path / "stage"
    stage.mkdir()
    script = f"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/python /mnt/code
mount --bind {prefix} /mnt/python
mount --bind {ROOT / "emulation"} {stage}
cp -r {stage} /mnt/code/emulation
cd /
exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups \\
    /mnt/python/bin/{Path(sys.executable).resolve().name} -c "$CODE"
"""
    variables = {
        "CODE": CODE,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": "/mnt/code",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    uid, ok, ratios = eval(done.stdout.replace("true", "True"))
    assert uid == 0
    assert ok
    assert all(abs(ratio - 1) <= 0.02 for ratio in ratios)
