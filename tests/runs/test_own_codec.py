"""docs/codec.md as a user follows it: a codec in a package of one's own becomes an arm."""

import json
import re
from pathlib import Path

from tests.runs.tiny import PRESET, run_testbed

PAGE = Path(__file__).parents[2] / "docs" / "codec.md"


def test_the_codec_of_the_documentation_runs(tmp_path, monkeypatch):
    """Its bytes are half of exact's, asserted at the sockets; a misspelt name is refused with the known ones."""
    package = tmp_path / "site"
    (package / "my_codecs-1.dist-info").mkdir(parents=True)
    code, entry = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (package / "my_codecs.py").write_text(code)
    (package / "my_codecs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: my-codecs\nVersion: 1\n")
    name, value = re.findall(r'^(\w+) = "(.*)"$', entry, re.MULTILINE)[0]
    (package / "my_codecs-1.dist-info" / "entry_points.txt").write_text(f"[testbed.codecs]\n{name} = {value}\n")
    monkeypatch.setattr("tests.runs.tiny.EXTRA_PATH", str(package))
    options = (
        "emulate",
        "--backend",
        "host",
        "--bw",
        "50mbit",
        "--pace",
        "none",
        "--nodes",
        "2",
        "--steps",
        "2",
        "--preset",
        PRESET,
        "--share",
    )
    done = run_testbed(tmp_path, *options, "--arms", "decentralised,halves", "--name", "run")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    arms = json.loads((tmp_path / "runs" / "run" / "comparison.json").read_text())["arms"]
    sent = {arm["arm"]: arm["kv_payload_bytes_per_step"] for arm in arms}
    assert sent["halves"] == sent["decentralised"] / 2
    wrong = run_testbed(tmp_path, *options, "--arms", "halfs")
    assert wrong.returncode == 2
    assert "halves" in wrong.stderr
