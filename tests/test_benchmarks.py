"""That the list of planted faults keeps up with the code; what it finds, `benchmarks/guards.py` says when it is run."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def guards() -> Any:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("guards", ROOT / "benchmarks" / "guards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["guards"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_every_fault_finds_its_one_place_and_its_tests(guards):
    for fault in guards.FAULTS:
        guards.place(ROOT, fault)
        assert all((ROOT / each).exists() for each in fault.tests.split()), fault.key
    assert len({fault.key for fault in guards.FAULTS}) == len(guards.FAULTS) > 100


def test_a_fault_without_a_place_is_said(guards):
    """Negative control."""
    with pytest.raises(ValueError, match="0 places for a fault"):
        guards.place(ROOT, replace(guards.FAULTS[0], old="what nobody wrote"))
