"""docs/exchanges.md and docs/data.md as a user follows them: an exchange, and a task, in a package of one's own."""

import json
import re
from pathlib import Path

import pytest

from testbed.config import Data, Model, Preset, load_toml
from testbed.config.arms import arm_named
from testbed.data.plugged import check_plugged
from testbed.data.source import open_source
from testbed.errors import UsageError
from tests.codecs.plugged import install
from tests.runs.tiny import PRESET, run_testbed

DOCS = Path(__file__).parents[2] / "docs"
HOST = ("emulate", "--backend", "host", "--bw", "50mbit", "--pace", "none", "--nodes", "2", "--share", "--no-report")


def example(page: str, section: str) -> str:
    """The first Python of a section, which fits on a page."""
    text = (DOCS / page).read_text().partition(f"## {section}\n")[2]
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len(code.splitlines()) <= 60
    return code


@pytest.fixture
def exchange(tmp_path, monkeypatch) -> str:
    """The installed `later` of docs/exchanges.md."""
    folder = install(tmp_path / "site", example("exchanges.md", "An exchange of your own"), "exchanges", later="Later")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("tests.runs.tiny.EXTRA_PATH", folder)
    return folder


@pytest.fixture
def task(tmp_path, monkeypatch) -> str:
    """The installed `reverse` of docs/data.md."""
    folder = install(tmp_path / "site", example("data.md", "A task of your own"), "tasks", reverse="Reverse")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("tests.runs.tiny.EXTRA_PATH", folder)
    return folder


def test_the_exchange_of_the_documentation_runs(tmp_path, exchange):
    """Its losses are all-gather's to the last bit, its bytes half of them, asserted at the sockets; without it the
    name is nobody's."""
    done = run_testbed(
        tmp_path, *HOST, "--steps", "2", "--preset", PRESET, "--arms", "decentralised,later", "--name", "run"
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]  # 1: a busy machine disturbed a step
    arms = json.loads((tmp_path / "runs" / "run" / "comparison.json").read_text())["arms"]
    exact, later = ({arm["arm"]: arm for arm in arms}[name] for name in ("decentralised", "later"))
    assert later["final_val_loss"] == exact["final_val_loss"]
    assert later["kv_payload_bytes_per_step"] == exact["kv_payload_bytes_per_step"] / 2
    assert later["exchange"] == "later"
    paced = run_testbed(tmp_path, *HOST[:5], "--nodes", "2", "--preset", PRESET, "--arms", "later", "--share")
    assert (paced.returncode, "PACE=none" in paced.stderr) == (2, True), paced.stderr


def test_an_exchange_that_nobody_has_is_refused_with_the_known_ones(tmp_path):
    text = 'name = "own"\nexchange = "al-gather"\nsync = "average"\nlink = "bw"\n'
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(UsageError, match=r"'al-gather' is no exchange; known are .*; did you mean 'all-gather'"):
        arm_named(str(tmp_path / "own.toml"))


def test_the_task_of_the_documentation_is_learned_from(tmp_path, task):
    """Its batches depend on seed, split and step alone; its vocabulary and options are checked."""
    data = Data(task="reverse", options={"words": 5})
    source = open_source(data, seed=3, chunks=2)
    first, again = (open_source(data, seed=3, chunks=2).batch("train", 1, 2, 16) for _ in range(2))
    assert (first.tokens == again.tokens).all()
    assert source.vocabulary == 5
    assert (first.evidence[first.counted] >= 0).all()
    text = Path(PRESET).read_text() + '[data]\ntask = "reverse"\noptions.words = 7\n'
    (tmp_path / "own.toml").write_text(text)
    preset = load_toml(Preset, "presets", str(tmp_path / "own.toml"))
    assert preset.data.options == {"words": 7}
    done = run_testbed(
        tmp_path, *HOST, "--steps", "2", "--preset", "own.toml", "--arms", "decentralised,control", "--name", "run"
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"task": "reverze"}, r"'reverze' is no task; known are .*; did you mean 'reverse'"),
        ({"task": "reverse", "options": {"word": 5}}, "the task 'reverse' has no option 'word'; it has words"),
        ({"task": "reverse", "options": {"words": "many"}}, "options of the task 'reverse': words"),
        ({"task": "reverse"}, "a vocabulary of 15 is too small for task 'reverse', which needs 16"),
        ({"task": "mqar", "options": {"words": 5}}, "the table options is of tasks that packages add"),
    ],
)
def test_what_a_task_does_not_have_is_refused(task, data, said):
    model = Model(vocabulary=15, width=8, layers=1, heads=1, kv_heads=1, ffn=8)
    with pytest.raises(UsageError, match=said):
        check_plugged(Data(**data), model)
