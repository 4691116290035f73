"""The import rule of the house, read from the sources and tried in a fresh interpreter."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNNING = {f"testbed.{room}" for room in ("cli", "cluster", "driver", "learn", "rundir", "settings", "sweep")}
"""Rooms that know what a run is."""
ABOVE = RUNNING | {"testbed.analysis", "testbed.trainer"}
MADE_BY_OTHERS = {"torch", "numpy"}
FORBIDDEN = {
    "emulation": {"testbed", "torch", "numpy", "pandas"},
    "emulation/spec": {f"emulation.{room}" for room in ("kernel", "shaping", "nodes", "measure", "doctor")},
    "emulation/kernel": {f"emulation.{room}" for room in ("spec", "shaping", "nodes", "measure", "doctor")},
    "emulation/shaping": {f"emulation.{room}" for room in ("nodes", "measure", "doctor")},
    "emulation/nodes": {f"emulation.{room}" for room in ("measure", "doctor")},
    "emulation/measure": {"emulation.doctor"},
    "testbed/config": {"emulation", *ABOVE, *MADE_BY_OTHERS},
    "testbed/records": {"emulation", *ABOVE, *MADE_BY_OTHERS},
    "testbed/data": {"emulation", "torch", *ABOVE},
    "testbed/collector": {"emulation", "torch", *ABOVE},
    "testbed/codecs": {"emulation", "testbed.parallel", *ABOVE},
    "testbed/parallel": {"emulation", *ABOVE},
    "testbed/model.py": {"emulation", "testbed.parallel", *ABOVE},
    "testbed/pace.py": {"emulation", *ABOVE},
    "testbed/targets.py": {"emulation", *ABOVE, *MADE_BY_OTHERS},
    "testbed/commandline.py": {"emulation", *ABOVE, *MADE_BY_OTHERS},
    "testbed/formats.py": {"emulation", *ABOVE},
    "testbed/intervals.py": {"emulation", *ABOVE},
    "testbed/trainer": {"emulation", "testbed.analysis", *RUNNING},
    "testbed/analysis": {"emulation", "torch", *RUNNING},
    "testbed/settings": {
        "torch",
        "testbed.analysis",
        "testbed.cli",
        "testbed.driver",
        "testbed.learn",
        "testbed.sweep",
    },
    "testbed/rundir": {"emulation", "torch", *ABOVE - {"testbed.rundir"}},
    "testbed/driver": {"testbed.cli", "testbed.cluster", "testbed.learn", "testbed.sweep"},
    "testbed/learn": {"testbed.cli", "testbed.cluster", "testbed.sweep"},
    "testbed/sweep": {"testbed.cli", "testbed.cluster"},
}
"""What a room, and whatever it imports in its turn, may not import."""
GROUND = {"emulation.errors"}
"""Which every room may: the errors that a user sees."""


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Modules that a file names in its import statements, wherever they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def source(name: str, top: Path) -> Path | None:
    """The file of one of our modules."""
    path = top.joinpath(*name.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def offences(path: Path, forbidden: set[str], top: Path = ROOT) -> set[str]:
    """What it imports of that, itself or by what it imports."""
    found, seen, left = set(), set(), [path]
    while left:
        if (file := left.pop()) in seen:
            continue
        seen.add(file)
        for name in imported(file):
            if any(name == ground or name.startswith(ground + ".") for ground in GROUND):
                continue
            if any(name == rule or name.startswith(rule + ".") for rule in forbidden):
                found.add(name)
            elif (there := source(name, top)) is not None:
                left.append(there)
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_downwards(room):
    """cli -> sweep -> learn -> driver -> analysis -> records; driver -> trainer -> parallel, codecs, model, data."""
    place = ROOT / room
    files = [place] if place.suffix else sorted(place.rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): offences(path, FORBIDDEN[room]) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_wrong_import_is_noticed(tmp_path):
    """Negative control: of the file itself, and of what it imports."""
    low = tmp_path / "testbed" / "low"
    low.mkdir(parents=True)
    (low / "bad.py").write_text("from testbed.driver import ranks\nimport torch.nn\n")
    (low / "worse.py").write_text("def late():\n    from testbed.low import bad\n")
    for name in ("bad", "worse"):
        found = offences(low / f"{name}.py", {"testbed.driver", "torch"}, tmp_path)
        assert found == {"testbed.driver", "testbed.driver.ranks", "torch.nn"}


def test_no_modules_import_each_other():
    """Neither two of them, nor several in a circle."""
    graph = {}
    for path in (path for package in ("emulation", "testbed") for path in (ROOT / package).rglob("*.py")):
        found = {there for name in imported(path) if (there := source(name, ROOT)) is not None}
        graph[path] = {each for each in found if each.name != "__init__.py"}
    assert len(graph) > 150
    while leaves := {path for path, needs in graph.items() if not needs & graph.keys()}:
        graph = {path: needs for path, needs in graph.items() if path not in leaves}
    assert sorted(str(path.relative_to(ROOT)) for path in graph) == []


@pytest.mark.parametrize(
    "module",
    [
        "testbed.config",
        "testbed.targets",
        "testbed.settings.networks",
        "testbed.cli",
        "emulation",
        "emulation.measure.verify",
    ],
)
def test_light_modules_pull_in_no_torch(module):
    """A world must be entered before torch or numpy start their threads."""
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_rank_starts_without_what_it_has_no_use_for():
    """PyTorch's compiler and pandas: 1.2 of the 2.6 s that a rank took to start."""
    code = """
import sys, torch, testbed.driver.serve
from testbed.trainer.optimizer import AdamW
weight = torch.ones(3, requires_grad=True)
optimizer = AdamW([weight], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
weight.sum().backward()
optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())
print({"torch._dynamo", "pandas"} & set(sys.modules))
torch.optim.AdamW([weight]).step()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["set()", "True"]
