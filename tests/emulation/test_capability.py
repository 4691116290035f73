"""What the machine can do is found by trying."""

import json

import pytest

from emulation import capability
from emulation.errors import CapabilityError
from tests.emulation.conftest import PRELUDE, python


@pytest.mark.world
def test_probe_tries_everything_and_leaves_nothing():
    code = "from dataclasses import asdict\nfrom emulation.capability import probe, has_netem\n"
    done = python(PRELUDE + code + "print(json.dumps([has_netem(), [asdict(c) for c in probe()]]))")
    assert done.returncode == 0, done.stderr
    netem, found = json.loads(done.stdout)
    by_name = {each["name"]: each for each in found}
    assert by_name["private world"]["ok"]
    assert by_name["tbf"]["ok"]
    assert by_name["htb with u32"]["ok"]
    assert by_name["netem"]["ok"] == netem
    assert all(each["remedy"] for each in found if each["needed"] and not each["ok"])


def test_missing_tools_are_named_with_the_remedy(monkeypatch):
    capability.require_tools()
    monkeypatch.setattr(capability, "tool_path", lambda name: None if name == "tc" else f"/bin/{name}")
    with pytest.raises(CapabilityError, match=r"tc not found .*sudo apt-get install iproute2"):
        capability.require_tools()


def test_the_package_pulls_in_nothing_heavy():
    code = "import pkgutil, importlib, sys, emulation\n"
    code += "for m in pkgutil.walk_packages(emulation.__path__, 'emulation.'): importlib.import_module(m.name)\n"
    code += "print(sorted({'torch', 'numpy', 'testbed', 'pyroute2'} & set(sys.modules)))"
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr
