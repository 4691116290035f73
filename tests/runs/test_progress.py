"""What a run says while it runs, and who watches it from elsewhere."""

import io
import json
import threading
import time

import pytest
from rich.console import Console

from testbed.rundir.progress import Progress, facts_line, minutes, watch

FACTS = {
    "link": "300mbit per pair asked",
    "arm": "subspace",
    "step": 3,
    "of": 250,
    "loss": 2.3456,
    "step_seconds": 4.493,
    "wire_mb": 260.4,
    "left_seconds": 130.0,
}
LINE = (
    "300mbit per pair asked · subspace · step 3/250 · loss 2.346 · 4.49 s a step · 260.4 MB on the wire a step · "
    "about 2 min left"
)


def plain() -> Console:
    """A pipe."""
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_facts_are_one_line_and_what_is_missing_is_left_out():
    """In the order in which they are asked for."""
    assert facts_line(FACTS) == LINE
    assert facts_line({"arm": "control", "wire_mb": None}) == "control"
    assert facts_line({}) == ""
    assert (minutes(80), minutes(600)) == ("80 s", "10 min")


def test_the_state_is_there_for_who_watches_and_says_when_it_has_ended(tmp_path):
    """By rename, and not before the run has its folder."""
    folder = tmp_path / "run"
    with Progress(plain(), folder) as progress:
        progress.report("too early", arm="subspace")
        folder.mkdir()
        progress.report("learning", step=1, of=2)
        state = json.loads((folder / "state.json").read_text())
        assert (state["stage"], state["ended"]) == ("learning", False)
        assert state["facts"] == {"arm": "subspace", "step": 1, "of": 2}
    assert json.loads((folder / "state.json").read_text())["ended"]
    assert list(folder.glob("*.partial")) == []


def test_watching_shows_the_same_until_it_ends(tmp_path):
    """Each line once."""
    console = plain()
    with Progress(plain(), tmp_path) as progress:
        progress.report("time subspace", **FACTS)
        watcher = threading.Thread(target=watch, args=(tmp_path, console))
        watcher.start()
        time.sleep(1.2)
    watcher.join(5)
    assert not watcher.is_alive()
    lines = [line for line in said(console).splitlines() if "time subspace" in line]
    assert len(lines) == 2  # under way, and at the end
    assert f"[{LINE}]" in lines[0]
    assert "it has ended" in said(console)


def test_a_run_that_has_gone_is_noticed(tmp_path):
    """It has said nothing for a minute, not even that it lives: status 1, and what to do."""
    state = {"schema_version": 1, "at": time.time() - 61, "seconds": 5.0, "stage": "x", "facts": {}, "ended": False}
    (tmp_path / "state.json").write_text(json.dumps(state))
    console = plain()
    assert watch(tmp_path, console) == 1
    assert "type its command again" in said(console)


def test_a_stage_of_minutes_is_no_silence(tmp_path, monkeypatch):
    """Whoever lives says so, however long nothing happens."""
    monkeypatch.setattr("testbed.rundir.progress._BEAT_SECONDS", 0.05)
    with Progress(plain(), tmp_path) as progress:
        progress.report("a long step")
        first = json.loads((tmp_path / "state.json").read_text())["at"]
        time.sleep(0.4)
        assert json.loads((tmp_path / "state.json").read_text())["at"] > first


def test_a_terminal_has_the_facts_below_the_stage():
    """As they are said, with markup of a user's as text."""
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Progress(console) as progress:
        progress.report("  [b]x[/b]: step 3/250", **FACTS)
        time.sleep(0.3)
    text = said(console)
    assert "[b]x[/b]" in text
    assert "260.4 MB on the wire a step" in text


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1}', "{" * 5000, "\xff"])
def test_a_state_that_is_none_is_not_believed(tmp_path, monkeypatch, text):
    """Half written by a machine that went down, or somebody else's: nothing is heard, and that is said in the end."""
    monkeypatch.setattr("testbed.rundir.progress._SILENT_SECONDS", 0.0)
    (tmp_path / "state.json").write_bytes(text.encode("latin-1"))
    console = plain()
    assert watch(tmp_path, console) == 1
    assert "says nothing of how it stands" in said(console)
