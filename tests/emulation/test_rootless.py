"""The same without root: in a user namespace, as an ordinary user."""

import json
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
COUNT = '''
import json, sys
from emulation.kernel.counters import WireCounter
print(WireCounter(json.loads(sys.argv[1])).read().tx_bytes)
'''
def main():
    network = net(2, "100mbit", "pair")
    with NetnsBackend(network) as backend:
        measured = verify.verify(backend, network)
        node = network.nodes[0]
        argv = [sys.executable, "-c", COUNT, json.dumps(backend.counter(node))]
        counted = int(backend.popen(node, argv, stdout=subprocess.PIPE).communicate()[0])
    ratios = [each.ratio for each in measured.links]
    print(json.dumps({"uid": os.getuid(), "ratios": ratios, "counted": counted}))
    return 0
assert os.getuid() == 65534
sys.exit(run_in_world(main))
"""
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
    found = json.loads(done.stdout)
    assert found["uid"] == 0  # in its own user namespace
    assert found["counted"] > 1_000_000
    assert all(abs(ratio - 1) <= 0.02 for ratio in found["ratios"])
