"""`testbed learn`: killed or not, in one go or in two, the same table; what cannot be learned is said before."""

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

import testbed
from testbed.cli import main
from testbed.cli.tables import list_runs
from testbed.config import Preset, load_toml
from testbed.config.arm import OWN_REPLICAS
from testbed.config.arms import arm_named
from testbed.errors import UsageError
from testbed.learn import experiment
from testbed.learn.experiment import cells_of, load_experiment
from testbed.learn.run import Learn, dry_run, learn
from testbed.records import QualityRecord, read_record
from testbed.rundir.identity import LEARNING, code_sha256
from tests.runs.tiny import PRESET, command, environment, marked
from tests.trainer.small import on_ranks, steps

EXPERIMENT = f"""
title = "Tiny"
presets = ["{PRESET}"]
seeds = [0, 1]
sync = "gradients"
arms = ["decentralised", "control", {{ name = "own", like = "subspace", codec = {{ own_chunk = "exact" }} }}]
"""
RESULTS = ("quality.json", "quality.md", "results.csv")
ATTENTION = """{ name = "own", like = "control", sync = "average", weights = { scope = "attention" } }"""


def write(folder: Path, text: str = EXPERIMENT) -> str:
    (folder / "tiny.toml").write_text(text)
    return str(folder / "tiny.toml")


def quietly(file: str, **asked) -> tuple[QualityRecord, dict[str, str]]:
    return learn(Learn(file=file, **asked), lambda _: None)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """The folder of an experiment that was learned in one go."""
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        record, failed = quietly(write(folder), jobs=2)
    assert (record.cells, record.cells_asked, failed) == (6, 6, {})
    return folder


def test_a_cell_is_what_the_trainer_learns(learned):
    """The losses are those of the trainer on ranks of its own; bytes and drift are there."""
    preset = load_toml(Preset, "presets", PRESET)
    experiment = load_experiment(str(learned / "tiny.toml"))
    cell = next(cell for cell in cells_of(experiment) if (cell.seed, cell.arm.name) == (0, "decentralised"))
    found = json.loads((learned / "runs/tiny/cells" / f"{cell.hash}.json").read_text())
    arm = replace(arm_named("decentralised"), sync="gradients")
    sums = on_ranks(4, arm, lambda trainer: (steps(trainer, preset.steps), trainer.mix), preset)
    for step, loss in enumerate(found["losses"]):
        counted = sums[0][1].batch("train", 1_000_000 + step, preset.batch, preset.context).counted.sum()
        assert loss == pytest.approx(sum(rank[0][step] for rank in sums) / counted, abs=1e-6)
    assert found["schema_version"] == 1
    assert found["config"]["seed"] == 0
    assert found["bytes_per_token_layer"] == {"forward": 4 * 32, "backward": 4 * 32}
    assert [each["step"] for each in found["validations"]] == [0, 2, 4, 6]
    assert found["validation_exact"]["val_loss"] == pytest.approx(found["validations"][-1]["val_loss"], abs=0.02)


def test_nothing_is_learned_twice(learned, monkeypatch):
    """Another start makes the same table and starts no process."""
    monkeypatch.chdir(learned)
    before = {name: (learned / "runs/tiny" / name).read_bytes() for name in RESULTS}
    monkeypatch.setattr("testbed.learn.run.Learning", lambda *_: pytest.fail("something is learned"))
    quietly(str(learned / "tiny.toml"))
    assert {name: (learned / "runs/tiny" / name).read_bytes() for name in RESULTS} == before


def test_it_is_listed_among_the_runs(learned, monkeypatch):
    monkeypatch.chdir(learned)
    (run,) = list_runs()
    assert (run["name"], run["state"], run["mode"], run["reason"]) == ("tiny", "done", "learn", "6 of 6 cells: Tiny")


def test_cells_of_another_code_are_told_apart(learned, tmp_path, monkeypatch):
    """Two of six, as if another state of the code had learned them: taken all the same, and said in table and line."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(learned / "runs/tiny", tmp_path / "runs/tiny")
    for path in sorted((tmp_path / "runs/tiny/cells").glob("*.json"))[:2]:
        cell = json.loads(path.read_text())
        assert cell["environment"]["sources_sha256"] == code_sha256(LEARNING)
        cell["environment"]["sources_sha256"] = "5" * 64
        path.write_text(json.dumps(cell))
    said: list[str] = []
    record, _ = learn(Learn(file=write(tmp_path), jobs=0), said.append)
    assert [state.cells for state in record.code] == [4, 2]
    assert any(line.startswith("warning: Not all cells were learned by the same code: 4 by") for line in said)
    assert "2 by sources 555555555" in (tmp_path / "runs/tiny/quality.md").read_text()
    assert read_record(QualityRecord, tmp_path / "runs/tiny/quality.json") == record
    assert "by the same code" not in (learned / "runs/tiny/quality.md").read_text()


def test_a_digest_knows_the_sources_that_decide(tmp_path):
    """What is learned by, and neither what shows it nor where it lies."""
    root = Path(testbed.__file__).parents[1]
    copies = [tmp_path / f"{number}" for number in range(8)]
    for copy in copies:
        for package in ("testbed", "emulation"):
            shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_sha256(LEARNING)
    (copies[0] / "testbed/analysis/quality/judge.py").write_text("")
    assert code_sha256(LEARNING, copies[0]) == before
    found = {before}
    names = ("codecs/topk.py", "config/preset.py", "data/mqar.py", "model.py", "learn/worker.py")
    for copy, name in zip(copies[1:], (*names, "parallel/exchanges/ring.py", "trainer/loop.py"), strict=True):
        with (copy / "testbed" / name).open("a") as file:
            file.write("CHANGED = 1\n")
        found.add(code_sha256(LEARNING, copy))
    assert len(found) == 8


def test_cells_of_another_state_are_left_aside_or_kept_and_named(learned, tmp_path, monkeypatch):
    """As if the code had changed: all are to be learned again, unless --keep-older is typed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(learned / "runs/tiny", tmp_path / "runs/tiny")
    was = experiment.learning_content
    monkeypatch.setattr(experiment, "learning_content", lambda *given: was(*given) | {"code": "7" * 64})
    file = write(tmp_path)
    plain, kept = dry_run(Learn(file=file)), dry_run(Learn(file=file, keep_older=True))
    assert (plain.count("missing"), kept.count("missing")) == (6, 0)
    assert "6 cells are there of another state (code) and left aside: --keep-older" in plain
    assert quietly(file, keep_older=True)[0].cells == 6


def test_replicas_that_are_not_alike_are_said_to_be_so_at_once(tmp_path, monkeypatch):
    """Before anything is learned; of no other arm."""
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    text = EXPERIMENT.replace("arms = [", f"arms = [{ATTENTION}, ").replace(
        'name = "own", like = "sub', 'name = "b", like = "sub'
    )
    learn(Learn(file=write(tmp_path, text), jobs=0), said.append)
    assert [line for line in said if OWN_REPLICAS in line] == [f"own: {OWN_REPLICAS}"]


def test_a_changed_configuration_is_missing_again(learned, monkeypatch):
    """Negative control: another codec, seed or preset has another hash; another name or order has not."""
    monkeypatch.chdir(learned)

    def missing(text: str) -> int:
        return dry_run(Learn(file=write(learned, text), name="tiny")).count("missing")

    assert missing(EXPERIMENT.replace('"own"', '"its own"').replace('"control", ', "").replace("[0, 1]", "[1, 0]")) == 0
    assert missing(EXPERIMENT.replace("own_chunk", "wire = 'fp32', own_chunk")) == 2
    assert missing(EXPERIMENT.replace("[0, 1]", "[0, 2]")) == 3
    assert missing(EXPERIMENT.replace("codec = {", "preset = { steps = 4 }, codec = {")) == 2
    assert missing(EXPERIMENT) == 0


def test_killed_and_resumed_it_gives_the_same_table(learned, tmp_path, monkeypatch):
    """SIGKILL as soon as a cell is there: no process outlives it, and the same command ends as if nothing had been."""
    file, mark = write(tmp_path), f"learn{time.monotonic_ns()}"
    process = subprocess.Popen(
        command("learn", file, "--jobs", "1"), cwd=tmp_path, env=environment(mark), stdout=subprocess.DEVNULL
    )
    cells = tmp_path / "runs/tiny/cells"
    while not list(cells.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while marked(mark):
        assert time.monotonic() < deadline, "a learner outlived its parent"
        time.sleep(0.05)
    assert 1 <= len(list(cells.glob("*.json"))) < 6
    monkeypatch.chdir(tmp_path)
    quietly(file, jobs=2)
    for name in RESULTS:
        ours, theirs = ((folder / "runs/tiny" / name).read_text() for folder in (tmp_path, learned))
        assert ours == theirs if name != "quality.json" else _but_for_code(ours) == _but_for_code(theirs)


def test_what_cannot_be_learned_does_not_keep_the_rest(learned, tmp_path, monkeypatch, capsys):
    """A run whose loss is no number is named with its reason, the others stand in the table, and the status is 1."""
    monkeypatch.chdir(tmp_path)
    wild = '{ name = "wild", like = "control", preset = { learning_rate = 1e30 } }'
    text = EXPERIMENT.replace("arms = [", f"arms = [{wild}, ").replace("[0, 1]", "[0]")
    (tmp_path / "runs/old").mkdir(parents=True)
    (learned / "runs/tiny/cells").rename(tmp_path / "runs/old/cells")
    try:
        assert main(["learn", write(tmp_path, text), "--jobs", "1", "--reuse", "old"]) == 1
    finally:
        (tmp_path / "runs/old/cells").rename(learned / "runs/tiny/cells")
    out = capsys.readouterr().out
    assert "seed 0, wild FAILED: RunFailed: step" in out
    assert "4 cells: 3 there, 1 to learn after 1 warm start\n" in out
    assert "3 of 4 cells" in out
    assert "`own`" in out


def _but_for_code(text: str) -> dict:
    """Somebody may commit meanwhile."""
    return {key: value for key, value in json.loads(text).items() if key != "code"}


BAD = {
    "unknown key": (EXPERIMENT + 'colour = "red"\n', "did you mean 'control'"),
    "a typo in an arm": (EXPERIMENT.replace('"control"', '"controll"'), "did you mean 'control'"),
    "a typo in a table": (EXPERIMENT.replace("own_chunk", "own_chunks"), "unknown key 'codec.own_chunks'"),
    "no preset": (EXPERIMENT.replace(PRESET, "quik"), "did you mean 'quick'"),
    "a preset's key": (EXPERIMENT.replace("codec =", "preset = { stepz = 3 }, codec ="), "unknown key 'stepz'"),
    "twice": (EXPERIMENT.replace('"own"', '"control"'), "two arms are called 'control'"),
    "no name": (EXPERIMENT.replace("name = ", "nam = "), "an arm is a name, or a table with a name"),
    "no seed": (EXPERIMENT.replace("[0, 1]", "[]"), "seeds is empty"),
    "a rank": (EXPERIMENT.replace("own_chunk", "ranks = [40, 3], own_chunk"), "between 1 and 32"),
    "a batch": (EXPERIMENT.replace('"control"', '"no-cp"'), "a batch of 2 sequences cannot be shared out"),
    "nodes": (EXPERIMENT + "nodes = 16\n", "16 nodes cannot share"),
    "no TOML": ("title = ", "not valid TOML"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_experiments_are_one_sentence(case, tmp_path, monkeypatch, capsys):
    """Status 2, before anything is learned."""
    monkeypatch.chdir(tmp_path)
    text, said = BAD[case]
    assert main(["learn", write(tmp_path, text)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["nowhere.toml"], "nowhere.toml cannot be read"),
        (["tiny.toml", "--jobs", "-1"], "it must be 0 or more"),
        (["tiny.toml", "--name", "../up"], "cannot be a run's name"),
        (["tiny.toml", "--arms", "best"], "'best' is no arm of this experiment"),
        (["tiny.toml", "--seeds", "one"], "'one' is no seed"),
        (["tiny.toml", "--times", "tiny.toml"], "tiny.toml is not valid JSON"),
        (["tiny.toml", "--reuse", "gone", "--jobs", "0"], "gone/cells is no folder of cells"),
    ],
)
def test_bad_flags_are_one_sentence(asked, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    assert main(["learn", *asked]) == 2
    assert said in capsys.readouterr().err


def test_one_at_a_time(learned, monkeypatch):
    """A second learner of the same folder is refused while the first is at work."""
    import testbed.learn.run as module

    monkeypatch.chdir(learned)
    with module.alone(learned / "runs/tiny"), pytest.raises(UsageError, match="at work"):
        quietly(str(learned / "tiny.toml"))
