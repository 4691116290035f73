"""What users name and the files they give, at their worst: one clear sentence, at once, and nothing made or touched.

A list that grows: whatever is found to pass belongs into NAMES, TOMLS, TRACES or MAHIMAHI. What each reader makes of
bad values is tested where it lives; here is what no reader may fall over, whatever it reads.
"""

import json
import os
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from emulation.errors import EmulationError
from emulation.errors import UsageError as NetworkUsageError
from emulation.spec.network import Link, star
from emulation.spec.schedule import load_schedule
from testbed.analysis.report import write_report
from testbed.cli import main
from testbed.config import Arm, Preset
from testbed.config.training import Train, resolve_training
from testbed.config.tree import load_toml, read_toml
from testbed.data.hub import HubSet
from testbed.errors import UsageError
from testbed.records import read_json
from testbed.rundir.directory import check_name, run_folder
from testbed.settings.networks import NetworkSpec
from testbed.sweep.grid import Grid
from testbed.targets import Target
from tests.analysis.test_report import NASTY, comparison_folder

REFUSED = (UsageError, NetworkUsageError)
LONGEST_SECONDS = 10.0
LONGEST_SENTENCE = 1000

NAMES = {
    "nothing": "",
    "parent": "..",
    "up": "../elsewhere",
    "root": "/tmp/elsewhere",
    "hidden": ".git",
    "flag": "--force",
    "blank": "a b",
    "newline": "a\nb",
    "zero": "a\0b",
    "tag": NASTY,
    "shell": "$(touch elsewhere);`touch elsewhere`",
    "long": "a" * 5000,
    "right to left": "a\u202eb",
    "half a character": "a\udc80",
    "percent": "%s%n{0}{x.__class__}",
    "terminal": "\x1b[2J\x1b]0;title\x07",
}
"""No run may be called so."""

TOMLS = {
    "nothing": b"",
    "a zero": b"\0",
    "no text": b"\xff\xfe\x00a",
    "half a character": b'name = "\xed\xa0\x80"',
    "deep lists": b"a = " + b"[" * 3000 + b"]" * 3000,
    "deep tables": b"a = " + b"{b = " * 2000 + b"1" + b"}" * 2000,
    "deep keys": b".".join([b"a"] * 5000) + b" = 1",
    "long key": b"a" * 100_000 + b" = 1",
    "many keys": b"\n".join(b"k%d = 1" % k for k in range(50_000)),
    "large": b"# " + b"x" * (5 << 20),
    "a huge integer": b"seed = " + b"9" * 4000,
    "a huger integer": b"seed = " + b"9" * 5000,
    "a tag": b'"' + NASTY.encode() + b'" = 1',
    "a terminal's": b'"\\u001b[2J" = "\\u001b]0;title\\u0007"',
    "a list": b"preset = [1, 2, 3]",
    "a date": b"preset = 1979-05-27",
    "infinite": b"seed = inf\nsteps = nan",
    "true": b"seed = true\nsteps = false",
    "another's": b"[tool.black]\nline-length = 88",
    "prototype": b"__class__ = 1\n__init__ = 2",
    "a path": b'preset = "../../../../etc/passwd"\narm = "/etc/passwd"\nfile = "/etc/passwd"',
}

TRACES = {
    "nothing": b"",
    "a zero": b"seconds,rate_bps\n0,1\0",
    "no text": b"\xff\xfe",
    "nan": b"seconds,rate_bps\n0,nan",
    "infinite": b"seconds,rate_bps\n0,1e99",
    "beyond": b"seconds,rate_bps\n0,1" + b"0" * 400,
    "later than ever": b"seconds,rate_bps\n9e17,1000000",
    "negative": b"seconds,rate_bps\n-1,1000000",
    "underscores": b"seconds,rate_bps\n0,1_000_000",
    "other digits": "seconds,rate_bps\n0,\u0661\u0662".encode(),
    "a formula": b"seconds,rate_bps\n0,=1+1",
    "short": b"seconds,rate_bps\n0",
    "one column": b"seconds\n0\n1",
    "no columns": b"\n".join([b","] * 1000),
    "a wide head": b",".join([b"seconds"] * 100_000),
    "too fast": b"seconds,rate_bps\n" + b"".join(b"%f,%d\n" % (k / 100, 10**9 + k) for k in range(100)),
    "a tag": b"seconds," + NASTY.encode() + b"\n0,1",
    "a loss of all": b"seconds,loss_percent\n0,100",
}

MAHIMAHI = {
    "nothing": b"",
    "zero": b"0\n",
    "words": b"one\n",
    "negative": b"-5\n",
    "backwards": b"9\n5\n",
    "a fraction": b"1.5\n",
    "for ever": b"999999999999\n",
    "longer": b"9" * 5000 + b"\n",
    "no text": b"\xff\n",
}


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _folder(path: Path) -> None:
    path.mkdir()


PLACES = [_pipe, _endless, _loop, _folder]
"""What may be where a file should be."""


def refused(call, *given) -> str:
    """The sentence that this is refused with."""
    begun = time.monotonic()
    with pytest.raises(REFUSED) as caught:
        call(*given)
    assert time.monotonic() - begun < LONGEST_SECONDS
    said = str(caught.value)
    assert said
    assert len(said) < LONGEST_SENTENCE, f"{len(said)} characters"
    assert said.isprintable(), repr(said)
    return said


def _training(path: Path):
    training = resolve_training(Train(config=str(path)))
    training.resolved_preset()
    return training.resolved_arm()


def _schedule(path: Path):
    return load_schedule(path, star(4, Link(rate_bps=10_000_000), "nic"))


READERS = {
    "preset": lambda path: read_toml(Preset, path),
    "target": lambda path: read_toml(Target, path),
    "arm": lambda path: read_toml(Arm, path),
    "network": lambda path: read_toml(NetworkSpec, path),
    "grid": lambda path: read_toml(Grid, path),
    "hub set": lambda path: read_toml(HubSet, path),
    "training": _training,
    "schedule": _schedule,
}
HARMLESS_IN = {("training", "nothing")}
"""Where a key may be missing or mean what it says."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", TOMLS)
def test_no_toml_gets_past_its_reader(tmp_path, reader, name):
    path = tmp_path / "a.toml"
    path.write_bytes(TOMLS[name])
    if (reader, name) in HARMLESS_IN:
        READERS[reader](path)
    else:
        refused(READERS[reader], path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", PLACES)
def test_no_place_is_read_as_a_file(tmp_path, reader, make):
    path = tmp_path / "a.toml"
    make(path)
    refused(READERS[reader], path)


@pytest.mark.parametrize(
    ("ending", "text"),
    [(".csv", text) for text in TRACES.values()] + [(".up", text) for text in MAHIMAHI.values()],
    ids=[*(f"csv {name}" for name in TRACES), *(f"mahimahi {name}" for name in MAHIMAHI)],
)
def test_no_trace_gets_past_its_reader(tmp_path, ending, text):
    path = tmp_path / f"a{ending}"
    path.write_bytes(text)
    refused(_schedule, path)


@pytest.mark.parametrize("ending", [".csv", ".up", ".down"])
@pytest.mark.parametrize("make", PLACES)
def test_no_place_is_read_as_a_trace(tmp_path, ending, make):
    path = tmp_path / f"a{ending}"
    make(path)
    refused(_schedule, path)


def test_what_is_harmless_passes(tmp_path):
    """The negative control: the very readers, with what they are for."""
    (tmp_path / "a.csv").write_text("seconds,rate_bps\n0,1000000\n1,2000000\n")
    (tmp_path / "a.up").write_text("5\n12\n")
    (tmp_path / "a.toml").write_text('[[at]]\ntime = "1s"\nbw = "5mbit"\n')
    (tmp_path / "b.toml").write_text('preset = "quick"\narm = "latent"\n')
    for name in ("a.csv", "a.up", "a.toml"):
        _schedule(tmp_path / name)
    _training(tmp_path / "b.toml")
    for kind, folder in ((Preset, "presets"), (Target, "targets"), (Arm, "arms"), (NetworkSpec, "networks")):
        path = next((Path(__file__).parents[1] / "experiments" / folder).glob("*.toml"))
        read_toml(kind, path)


# -- names


@pytest.mark.parametrize("name", NAMES)
def test_no_run_is_called_so(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused(check_name, NAMES[name], "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in NAMES if NAMES[name] not in ("..", "", ".git")])
def test_no_run_is_found_by_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused(run_folder, NAMES[name])


@pytest.mark.parametrize("kind", [(Preset, "presets"), (Target, "targets"), (Arm, "arms"), (NetworkSpec, "networks")])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_ours_is_called_so(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    refused(load_toml, *kind, NAMES[name])
    refused(load_toml, *kind, NAMES[name] + ".toml")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "flag"])
@pytest.mark.parametrize(
    "command",
    [
        ["report", "{}"],
        ["sweep", "{}"],
        ["sweep", "bandwidth_latency.toml", "--name", "{}"],
        ["learn", "--preset", "{}"],
        ["emulate", "--arms", "{}"],
        ["emulate", "--schedule", "{}"],
        ["emulate", "--network", "{}"],
        ["data", "prepare", "{}"],
        ["{}"],
    ],
    ids=lambda command: " ".join(command),
)
def test_no_command_takes_it(tmp_path, monkeypatch, capsys, command, name):
    """Exit status 2, one sentence without a control character, and nothing made."""
    if command[0] == "report" and NAMES[name] in ("", ".."):
        pytest.skip("a folder, and no run: said elsewhere")
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    status = main([word.format(NAMES[name]) if word == "{}" else word for word in command])
    said = capsys.readouterr().err
    assert status == 2, said
    assert time.monotonic() - begun < LONGEST_SECONDS
    assert "Traceback" not in said
    assert len(said) < 2 * LONGEST_SENTENCE
    assert said.strip().replace("\n", " ").isprintable(), repr(said)
    assert list(tmp_path.iterdir()) == []


# -- reports

RECORDS = {
    "nothing": b"",
    "half": b'{"arms": [',
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "a number": b"1e999",
    "half a character": b'{"name": "\\ud800"}',
    "other things": json.dumps({"schema_version": 1, "name": NASTY, "arms": [{"arm": NASTY}]}).encode(),
}


@pytest.mark.parametrize("name", RECORDS)
def test_no_record_makes_a_report(tmp_path, name):
    (tmp_path / "comparison.json").write_bytes(RECORDS[name])
    begun = time.monotonic()
    with pytest.raises((*REFUSED, EmulationError)) as caught:
        write_report(tmp_path)
    assert time.monotonic() - begun < LONGEST_SECONDS
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("make", PLACES)
def test_no_place_is_read_as_a_record(tmp_path, make):
    make(tmp_path / "comparison.json")
    refused(read_json, tmp_path / "comparison.json")


class _Tags(HTMLParser):
    """Every tag with the names of its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, *sorted(name for name, _ in attrs)))


@pytest.mark.parametrize("name", ["tag", "shell", "percent", "long", "parent"])
def test_a_report_shows_names_as_text(tmp_path, name):
    """Wherever they stand: no tag and no attribute that is not there anyway."""

    def tags(folder: Path, **names: str) -> set[tuple[str, ...]]:
        folder.mkdir()
        parser = _Tags()
        parser.feed(write_report(comparison_folder(folder, **names)).read_text(encoding="utf-8"))
        return parser.found

    plain = tags(tmp_path / "plain", name="a", arm="x" * len(NAMES[name]))
    assert tags(tmp_path / "nasty", name=NAMES[name], arm=NAMES[name]) <= plain
