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


def test_a_result_is_of_its_function_and_its_tests(guards, tmp_path):
    """What is tried again, and what is not: other text in the same file changes nothing."""
    (tmp_path / "testbed").mkdir()
    (tmp_path / "tests").mkdir()
    source, test = tmp_path / "testbed" / "one.py", tmp_path / "tests" / "test_one.py"
    fault = guards.Fault("add", "a + b", "a - b", "tests/test_one.py")
    source.write_text("def add(a, b):\n    return a + b\n")
    test.write_text("def test_one(): ...\n")
    first = guards.fingerprint(tmp_path, fault)
    source.write_text("import os\n\n\ndef add(a, b):\n    return a + b\n")
    assert guards.fingerprint(tmp_path, fault) == first
    source.write_text("def add(a, b):\n    return a + b  # and more\n")
    second = guards.fingerprint(tmp_path, fault)
    source.write_text("def add(a, b):\n    return a + b\n")
    test.write_text("def test_one(): add(1, 2)\n")
    assert len({first, second, guards.fingerprint(tmp_path, fault)}) == 3


def test_no_fault_that_was_tried_survives(guards):
    """By benchmarks/guards.jsonl, which has what each was noticed by."""
    results = guards._done()
    assert results.keys() <= {fault.key for fault in guards.FAULTS}
    assert {key: found["result"] for key, found in results.items() if found["result"] != "noticed"} == {}
