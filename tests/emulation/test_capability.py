"""What the machine can do is found by trying; where it cannot, the switch to blame is named."""

import json
import os
import subprocess
import sys

import pytest

from emulation.doctor import capability
from emulation.doctor import hardware as machine
from emulation.errors import CapabilityError
from emulation.kernel.unshare_errors import EVERYTHING, remedy_for
from tests.emulation.conftest import PRELUDE, ROOT, environment, python


@pytest.mark.world
def test_probe_tries_everything_and_leaves_nothing():
    code = "from dataclasses import asdict\nfrom emulation.doctor.probe import probe\n"
    code += "before = sorted(os.listdir('/sys/class/net')), sorted(os.listdir('/dev/shm'))\n"
    code += "found = [asdict(each) for each in probe()]\n"
    code += "assert before == (sorted(os.listdir('/sys/class/net')), sorted(os.listdir('/dev/shm')))\n"
    done = python(PRELUDE + code + "print(json.dumps(found))")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    by_name = {each["name"]: each for each in found}
    assert len(by_name) == len(found)
    assert set(found[0]) == {"name", "ok", "detail", "remedy", "needed"}
    for name in ("private world", "tbf", "htb, u32", "4 nodes, unshaped", "a run's nodes"):
        assert by_name[name]["ok"], by_name[name]
    assert "Gbit/s" in by_name["4 nodes, unshaped"]["detail"]
    assert "netns" in by_name["a run's nodes"]["detail"]
    delays = by_name["a run's delays"]
    assert delays["ok"] == (by_name["netem"]["ok"] or by_name["NFQUEUE"]["ok"])
    if delays["ok"]:
        assert delays["detail"].startswith("netem" if by_name["netem"]["ok"] else "delay line")
    assert all(each["remedy"] for each in found if not each["ok"])
    assert all(each["detail"] for each in found)
    assert [each["needed"] for each in found] == sorted((each["needed"] for each in found), reverse=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to take the right to make namespaces away from a child")
def test_without_worlds_all_else_is_still_said():
    forbid = 'for kind in user net mnt; do echo 0 > /proc/sys/user/max_${kind}_namespaces; done; exec "$@"'
    outside = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh"]
    if subprocess.run([*outside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel does not let a nested user namespace forbid namespaces")
    argv = [*outside, sys.executable, "-m", "emulation.doctor.probe"]
    done = subprocess.run(argv, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert not found["private world"]["ok"]
    assert "user.max_user_namespaces=10000" in found["private world"]["remedy"]
    assert "apparmor" not in found["private world"]["remedy"]
    assert found["tbf"]["detail"] == "not tried"
    assert "host" in found["a run's nodes"]["detail"]
    assert found["cores"]["detail"]


@pytest.mark.world
def test_a_trial_that_fails_says_why_and_nothing_else_is_printed():
    """Negative control: what cannot work is found not to."""
    code = "from emulation.doctor.kernel_checks import attempt, _run\n"
    code += "print(json.dumps(attempt(lambda: _run(('ip', 'link add x type nonsense')))))\n"
    code += "print(json.dumps(attempt(lambda: os._exit(3))))"
    done = python(PRELUDE + code)
    first, second = map(json.loads, done.stdout.splitlines())
    assert not first[0]
    assert "ip link add x type nonsense" in first[1]
    assert second == [False, "the trial ended with status 3"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("said", "files", "root", "named"),
    [
        (
            "unshare: No space left on device",
            {"sys/user/max_net_namespaces": "0"},
            True,
            "user.max_net_namespaces=10000",
        ),
        ("unshare: No space left on device", {}, True, "too many namespaces"),
        ("Operation not permitted", {"sys/kernel/unprivileged_userns_clone": "0"}, False, "userns_clone=1"),
        (
            "Operation not permitted",
            {"sys/kernel/apparmor_restrict_unprivileged_userns": "1"},
            False,
            "apparmor_restrict_unprivileged_userns=0",
        ),
        ("unshare: Operation not permitted", {"self/status": "Seccomp:\t2\n"}, True, "seccomp=unconfined"),
        ("mount: Permission denied", {"self/attr/current": "docker-default (enforce)\n"}, True, "apparmor=unconfined"),
        ("mount proc on /proc: Operation not permitted", {}, True, "systempaths=unconfined"),
    ],
)
def test_the_switch_to_blame_is_named_alone(tmp_path, said, files, root, named):
    """Each refusal has its own remedy, not the list of all."""
    for name, text in {"self/ns/user": "", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    remedy = remedy_for(said, proc=tmp_path, root=root)
    assert named in remedy
    assert remedy != EVERYTHING
    others = {"apparmor_restrict", "userns_clone", "seccomp=", "systempaths="} - {each for each in [named] if each}
    assert not [other for other in others if other in remedy and other not in named]


def test_an_unknown_refusal_names_every_switch(tmp_path):
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/user").touch()
    assert remedy_for("something new", proc=tmp_path, root=False) == EVERYTHING
    (tmp_path / "self/ns/user").unlink()
    assert "without user namespaces" in remedy_for("Invalid argument", proc=tmp_path, root=False)


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


@pytest.mark.parametrize(("share", "ok"), [("12.40", True), ("91.60", False)])
def test_a_machine_that_is_busy_already_is_said_to_be(monkeypatch, share, ok):
    """With what to do: steps that are timed beside other programs do not count."""
    text = f"some avg10={share} avg60=40.00 avg300=20.00 total=1\n"
    monkeypatch.setattr(machine, "_text", lambda _: text)
    found = machine.pressure()
    assert (found.ok, found.needed) == (ok, False)
    assert share in found.detail
    assert ("end what else is running" in found.remedy) is not ok
