"""Every notebook runs, from its first cell to its last, on runs that are made here and now."""

import tempfile
from pathlib import Path

import jupytext
import nbclient
import pytest
from nbformat import NotebookNode

from testbed.analysis.comparison.load import run_of_notebook
from testbed.errors import UsageError
from tests.runs.tiny import PRESET, run_testbed
from tests.worlds import needs_world

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))


def read(file: Path) -> NotebookNode:
    notebook = jupytext.read(file)
    assert isinstance(notebook, NotebookNode)
    return notebook


CODECS = f"""
title = "Tiny codecs"
presets = ["{PRESET}"]
seeds = [0, 1]
nodes = 2
arms = ["decentralised", "control", "best"]
"""


@pytest.fixture(scope="module")
def made(composed, swept, once):
    """A comparison, a sweep and a quality run, each tiny: the variables by which notebooks find them."""

    def learn(place):
        (place / "codecs.toml").write_text(CODECS)
        return run_testbed(place, "learn", "codecs.toml")

    place = once("learned", learn)
    swept_folder = str(swept / "runs" / "grid")
    return {
        "TESTBED_COMPARISON": str(composed),
        "TESTBED_QUALITY": str(place / "runs" / "codecs"),
        **dict.fromkeys(("TESTBED_SWEEP", "TESTBED_FIGURE2", "TESTBED_FIGURE14"), swept_folder),
    }


def test_a_notebook_finds_its_run_from_either_folder(tmp_path, monkeypatch):
    """Jupyter's working folder is the notebook's own, an editor's often the checkout."""
    monkeypatch.delenv("TESTBED_COMPARISON", raising=False)
    (tmp_path / "notebooks").mkdir()
    for place in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(place)
        with pytest.raises(UsageError, match="there is no run first: make it first, or set TESTBED_COMPARISON"):
            run_of_notebook("TESTBED_COMPARISON", "first")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(place)
        assert run_of_notebook("TESTBED_COMPARISON", "first").samefile(tmp_path / "runs" / "first")
    monkeypatch.setenv("TESTBED_COMPARISON", str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match=r"there is no run .*elsewhere"):
        run_of_notebook("TESTBED_COMPARISON", "first")


@pytest.mark.world
@needs_world
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_shows_figures(name, made, monkeypatch, tmp_path):
    """Every cell ends; at least one picture is there, or a table where there is nothing to draw."""
    for variable, folder in made.items():
        monkeypatch.setenv(variable, folder)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = read(NOTEBOOKS / f"{name}.py")
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(NOTEBOOKS))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_its_pair_shows_what_a_real_run_gave(name):
    """The .ipynb beside it holds the same cells, executed in order without an error, and is small."""
    file = NOTEBOOKS / f"{name}.ipynb"
    pair, source = read(file), read(NOTEBOOKS / f"{name}.py")
    assert [(cell.cell_type, cell.source) for cell in pair.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    executed = [cell for cell in pair.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in executed] == list(range(1, len(executed) + 1))
    outputs = [output for cell in executed for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    text = file.read_text()
    assert len(text) < 1_000_000
    assert not {place for place in (str(Path.home()), tempfile.gettempdir(), str(NOTEBOOKS.parent)) if place in text}


def test_there_are_notebooks():
    """So that the tests above have something to run."""
    assert len(NAMES) == 4
