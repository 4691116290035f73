"""A schedule of `testbed emulate` is played, or refused before anything is built; never passed over."""

import json
from dataclasses import replace
from typing import Any

import pytest

from emulation.errors import LinkError
from emulation.measure import verify
from emulation.measure.measurement import Capacity
from testbed.analysis.comparison.findings import sentences
from testbed.driver.links import Links
from testbed.errors import UsageError
from testbed.settings.emulate import Request, resolve
from tests.analysis.synthetic import made_up, shown, with_arm
from tests.runs.tiny import PRESET, TARGET, run_testbed
from tests.worlds import needs_world

CHANGE = '[[at]]\ntime = "1s"\nbw = "20mbit"\n'
RESTART = '[[at]]\ntime = "1s"\nfault = "restart"\nnodes = [0]\n'


def resolved(folder, text, **asked):
    file = folder / "schedule.toml"
    file.write_text(text)
    wanted: dict[str, Any] = {"bw": "50mbit", "nodes": 2, "pace": "none", "preset": PRESET, "schedule": str(file)}
    return resolve(Request(**wanted | asked), command="")


@pytest.mark.parametrize(
    ("text", "asked", "says"),
    [(CHANGE, {"backend": "host"}, "no link to change"), (RESTART, {}, "only programs under exec")],
)
def test_what_cannot_be_played_is_refused(tmp_path, text, asked, says):
    with pytest.raises(UsageError, match=says):
        resolved(tmp_path, text, **asked)


def test_a_modelled_link_plays_none(tmp_path, monkeypatch):
    """A rate beyond the machine is modelled, which the record must not call a link that changed."""
    settings = resolved(tmp_path, CHANGE)
    little = Capacity(
        aggregate_bps=10**6, per_pair_bps=10**6, slowest_pair_bps=10**6, per_node_bps=10**6, nodes=2, round_trip_us=50.0
    )
    monkeypatch.setattr(verify, "capacity", lambda _: little)
    links = Links(settings, type("Backend", (), {"network": settings.network.unshaped()})())
    with pytest.raises(LinkError, match="a modelled link plays no schedule"):
        links.preflight()


@pytest.mark.parametrize(("events", "said"), [(3, True), (0, False)])
def test_events_are_spoken_of_where_there_were_some(events, said):
    comparison, summaries = made_up(mode="live")
    comparison = replace(comparison, schedule=[{"at_seconds": 1.0, "what": "all links: bw 20mbit"}])
    found = shown(with_arm(comparison, "decentralised", events=events), summaries)
    text = " ".join(line for line, _ in sentences(found))
    assert ("Links changed while arms trained" in text) is said
    assert ("by closed form" in text) is not said


@pytest.mark.world
@pytest.mark.acceptance
@needs_world
def test_packets_that_a_trace_leaves_no_room_for_are_in_the_ledger(tmp_path):
    """They are dropped by the delay line, whose rates change faster than the kernel's could: no shaper counts them."""
    rates = (20_000_000, 8_000_000, 200_000, 30_000_000)
    lines = [f"{step / 10},{rates[step % 4]}" for step in range(200)]
    (tmp_path / "gaps.csv").write_text("\n".join(["seconds,rate_bps", *lines]) + "\n")
    done = run_testbed(
        tmp_path, "emulate", "--bw", "20mbit", "--queue", "5ms", "--nodes", "2", "--preset", PRESET, "--target", TARGET,
        "--arms", "decentralised", "--live", "3s", "--schedule", "gaps.csv", "--share", "--name", "run",
    )  # fmt: skip
    assert (tmp_path / "runs" / "run" / "comparison.json").exists(), done.stdout + done.stderr
    (arm,) = json.loads((tmp_path / "runs" / "run" / "comparison.json").read_text())["arms"]
    assert arm["ledger"]["queue_drops"] > 0
    entries = json.loads((tmp_path / "runs" / "run" / "decentralised" / "ledger.json").read_text())
    assert json.dumps(entries).count('"queue_drops": 0') == json.dumps(entries).count('"queue_drops":')
