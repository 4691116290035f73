"""The import rule of the house, read from the sources and tried in a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "emulation": {"testbed", "torch", "numpy", "pandas"},
    "testbed/parallel": {"emulation", "testbed.runs", "testbed.cli", "testbed.analysis", "testbed.trainer"},
    "testbed/codecs": {
        "emulation",
        "testbed.runs",
        "testbed.cli",
        "testbed.analysis",
        "testbed.trainer",
        "testbed.parallel",
    },
    "testbed/data": {"emulation", "testbed.runs", "testbed.cli", "testbed.analysis", "testbed.trainer", "torch"},
    "testbed/collector": {"emulation", "testbed.runs", "testbed.cli", "testbed.analysis", "testbed.trainer", "torch"},
    "testbed/analysis": {"emulation", "testbed.runs", "testbed.cli", "torch"},
    "testbed/trainer": {"emulation", "testbed.runs", "testbed.cli", "testbed.analysis"},
    "testbed/model.py": {"emulation", "testbed.runs", "testbed.parallel", "testbed.trainer"},
    "testbed/config": {"emulation", "testbed.runs", "testbed.trainer", "torch", "numpy"},
    "testbed/targets.py": {"emulation", "testbed.runs", "testbed.trainer", "torch", "numpy"},
    "testbed/commandline.py": {"emulation", "testbed.runs", "testbed.trainer", "torch", "numpy"},
    "testbed/pace.py": {"emulation", "testbed.runs", "testbed.cli", "testbed.analysis"},
}


def imported(path: Path) -> set[str]:
    """Modules that a file names in its import statements."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def offences(path: Path, forbidden: set[str]) -> set[str]:
    return {name for name in imported(path) for rule in forbidden if name == rule or name.startswith(rule + ".")}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_downwards(room):
    """cli -> runs, analysis -> trainer -> parallel, codecs, model, data, collector; runs and cli know the network."""
    place = ROOT / room
    files = [place] if place.suffix else sorted(place.rglob("*.py"))
    assert files
    assert {str(path): found for path in files if (found := offences(path, FORBIDDEN[room]))} == {}


def test_a_wrong_import_is_noticed(tmp_path):
    """Negative control."""
    (tmp_path / "bad.py").write_text("from testbed.runs import ranks\nimport torch.nn\n")
    assert offences(tmp_path / "bad.py", {"testbed.runs", "torch"}) == {
        "testbed.runs",
        "testbed.runs.ranks",
        "torch.nn",
    }


@pytest.mark.parametrize(
    "module", ["testbed.config", "testbed.targets", "testbed.networks", "testbed.cli", "emulation", "emulation.verify"]
)
def test_light_modules_pull_in_no_torch(module):
    """A world must be entered before torch or numpy start their threads."""
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_rank_starts_without_what_it_has_no_use_for():
    """PyTorch's compiler and pandas: 1.2 of the 2.6 s that a rank took to start."""
    code = """
import sys, torch, testbed.runs.serve
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
