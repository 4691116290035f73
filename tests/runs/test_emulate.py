"""A whole comparison on real links, small: what must hold in its files."""

import json
import math
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest

from testbed.config.arm import OWN_REPLICAS
from tests.runs.tiny import PRESET, TARGET, run_testbed
from tests.worlds import needs_world

pytestmark = [pytest.mark.world, needs_world]
ARMS = ["centralised", "decentralised", "subspace", "latent", "control"]


def read(path: Path):
    return json.loads(path.read_text())


def test_it_says_what_it_found(composed):
    """The links, every arm, and where everything lies."""
    output = (composed.parents[1] / "stdout.txt").read_text()
    assert "links proven before" in output
    assert "links proven after" in output
    for arm in ARMS:
        assert arm in output


FIGURES = ("loss_against_hours", "loss_against_step", "step_time", "bytes_per_step", "links")


def test_every_file_of_the_design_is_there(composed):
    """A run directory is evidence."""
    for name in (
        "config.json",
        "comparison.json",
        "results.parquet",
        "results.csv",
        "checkpoints/warm_start.safetensors",
    ):
        assert (composed / name).is_file(), name
    figures = {path.name for path in (composed / "figures").iterdir()}
    for figure in FIGURES:
        assert {f"{figure}.svg", f"{figure}.png"} <= figures
    for arm in ARMS:
        for name in (
            "config.json",
            "command.txt",
            "environment.json",
            "link/requested.json",
            "link/readback.json",
            "link/measured.json",
            "metrics/rank0.jsonl",
            "metrics/rank1.jsonl",
            "trace/rank0.json",
            "ledger.json",
            "summary.json",
        ):
            assert (composed / arm / name).is_file(), f"{arm}/{name}"


def test_what_is_modelled_says_so(composed):
    """The cluster's link and the target's compute are modelled; the slow links are measured."""
    arms = {arm["arm"]: arm for arm in read(composed / "comparison.json")["arms"]}
    assert arms["centralised"]["link"] == "modelled"
    assert arms["centralised"]["wire_bytes_per_step"] is None
    table = pd.read_parquet(composed / "results.parquet")
    kinds = table.groupby("arm")["time_kind"].unique().map(list).to_dict()
    assert kinds.pop("centralised") == ["modelled"]
    assert all(kind == ["composed"] for kind in kinds.values())
    for name in ARMS[1:]:
        assert arms[name]["link"] == "shaped"
        assert arms[name]["rate_measured_bps"] == pytest.approx(50e6, rel=0.02)


@pytest.mark.alone
def test_step_times_are_the_closed_form(tmp_path):
    """Compute of the target plus bytes / measured goodput: within 5 %, and 2 % without an exchange."""
    order = ("emulate", "--bw", "60mbit", "--nodes", "2", "--preset", PRESET, "--target", TARGET, "--share")
    done = run_testbed(
        tmp_path, *order, "--no-report", "--name", "run", "--budget", "4s", "--arms", "decentralised,latent,control"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for arm in read(tmp_path / "runs" / "run" / "comparison.json")["arms"]:
        allowed = 0.02 if arm["arm"] == "control" else 0.05
        assert arm["step_seconds_mean"] == pytest.approx(arm["closed_form_step_seconds"], rel=allowed), arm["arm"]


def test_timed_losses_are_the_learned_ones_to_the_last_bit(composed):
    """Invariant 2, per rank and step."""
    for arm in ARMS:
        for path in (composed / arm / "metrics").glob("rank*.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            learned = {
                line["step"]: line["loss"]
                for line in lines
                if line["phase"] == "learned" and "loss" in line and "val_loss" not in line
            }
            timed = {
                line["step"]: line["loss"] for line in lines if line["phase"] == "timed" and "step_seconds" in line
            }
            assert len(learned) == 6
            assert len(timed) >= 3
            assert all(learned[step] == loss for step, loss in timed.items())


def test_metrics_lines_have_their_keys(composed):
    """Units in the names, clocks that grow."""
    lines = [json.loads(line) for line in (composed / "latent" / "metrics" / "rank0.jsonl").read_text().splitlines()]
    timed = [line for line in lines if line["phase"] == "timed" and "step_seconds" in line]
    for line in timed:
        assert {
            "step", "time_seconds", "loss", "tokens", "step_seconds", "compute_seconds", "compute_cpu_seconds",
            "exchange_seconds", "sync_seconds", "payload_bytes", "wire_tx_bytes", "wire_rx_bytes", "valid",
        } <= set(line)  # fmt: skip
    clocks = [line["time_seconds"] for line in timed]
    assert clocks == sorted(clocks)
    assert any("val_loss" in line for line in lines)


def test_the_ledger_balances(composed):
    """Invariant 4: payload + headers + acknowledgements = the shaper's count, within 1 % or 4 KB, per step and node.
    A busy machine overruns the target's time; such a step is timed again, and balances all the same."""
    for arm in ARMS[1:]:
        for rank in read(composed / arm / "ledger.json")["ranks"]:
            for entry in rank:
                predicted = entry["sent"] + 66 * entry["segments"]
                assert abs(entry["wire_tx_bytes"] - predicted) <= max(0.01 * predicted, 4096)
                assert entry["acked"] == sum(entry["payload_bytes"].values())
                assert [each for each in entry["problems"] if not each.startswith("pace window overrun")] == []


def test_compressed_arms_send_what_the_target_would(composed):
    """Payload at the target's size in closed form; the wire in proportion."""
    arms = {arm["arm"]: arm for arm in read(composed / "comparison.json")["arms"]}
    exchanges, peers, tokens = 2 * 4, 1, 1024
    assert arms["decentralised"]["kv_payload_bytes_per_step"] == exchanges * peers * tokens * 2 * 256 * 2
    assert arms["subspace"]["kv_payload_bytes_per_step"] == exchanges * peers * (tokens * 17 * 2 + 2 * 4 * 4)
    assert arms["latent"]["kv_payload_bytes_per_step"] == exchanges * peers * tokens * (32 + 4)
    assert arms["control"]["kv_payload_bytes_per_step"] == 0
    for name in ("subspace", "latent"):
        assert arms[name]["wire_bytes_vs_decentralised"] == pytest.approx(
            arms[name]["kv_bytes_vs_decentralised"], rel=0.05
        )


def test_time_is_composed_of_steps_and_syncs(composed):
    """The last step's hour is steps × mean + synchronisations × theirs."""
    table = pd.read_parquet(composed / "results.parquet")
    for arm in read(composed / "comparison.json")["arms"]:
        end = table[table["arm"] == arm["arm"]]["time_seconds"].max()
        events = 6 if arm["sync"] == "gradients" else 3
        assert end == pytest.approx(6 * arm["step_seconds_mean"] + events * arm["sync_seconds_each"], rel=0.02)


def test_a_run_directory_is_never_overwritten(composed):
    """Exit 2 and one sentence; the first run is untouched."""
    before = (composed / "comparison.json").read_bytes()
    again = run_testbed(
        composed.parents[1],
        "emulate",
        "--bw",
        "50mbit",
        "--preset",
        PRESET,
        "--pace",
        "none",
        "--name",
        "run",
        "--nodes",
        "2",
    )
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert (composed / "comparison.json").read_bytes() == before


def test_runs_lists_it(composed):
    """`testbed runs --json`."""
    done = run_testbed(composed.parents[1], "runs", "--json")
    assert [run["state"] for run in json.loads(done.stdout)["runs"]] == ["done"]


@pytest.fixture(scope="module")
def unpaced(once) -> Path:
    """PACE=none at another rate and in the other accounting. On a busy machine some steps are not valid, which changes
    neither what was sent nor what was learned."""
    order = ("emulate", "--bw", "5mbit", "--accounting", "nic", "--pace", "none", "--nodes", "2", "--preset", PRESET)
    return (
        once("unpaced", lambda place: run_testbed(place, *order, "--name", "run", "--share", "--no-report"), (0, 1))
        / "runs"
        / "run"
    )


def test_a_network_changes_time_never_arithmetic(composed, unpaced):
    """The same losses to the last bit at 50 Mbit/s per pair, 5 Mbit/s per node, and off the links."""
    for arm in ARMS:
        off_link, on_link = (read(folder / arm / "summary.json") for folder in (composed, unpaced))
        assert off_link["learned"]["loss"] == [step["loss"] for step in on_link["timed"]["steps"]]


def test_figures_and_report_may_wait(unpaced):
    """`--no-report` leaves them out and says how they are made; `testbed report` makes both."""
    assert "figures and report: testbed report runs/run" in (unpaced.parents[1] / "stdout.txt").read_text()
    assert not (unpaced / "figures").exists()
    assert not (unpaced / "report.html").exists()
    done = run_testbed(unpaced.parents[1], "report", "run")
    assert done.returncode == 0, done.stderr
    assert {f"{figure}.png" for figure in FIGURES} <= {path.name for path in (unpaced / "figures").iterdir()}
    assert (unpaced / "report.html").stat().st_size > 10_000


def test_unpaced_times_are_measured(unpaced):
    """No model in it: this machine's compute, no ballast, the cluster's arm on a link that says unshaped."""
    comparison = read(unpaced / "comparison.json")
    assert comparison["pace"] == "none"
    arms = {arm["arm"]: arm for arm in comparison["arms"]}
    assert arms["centralised"]["link"] == "unshaped"
    assert all(arm["compute_kind"] == "measured" for arm in arms.values())
    table = pd.read_parquet(unpaced / "results.parquet")
    assert set(table["time_kind"]) == {"measured"}
    steps = read(unpaced / "decentralised" / "summary.json")["timed"]["steps"]
    assert all(step["payload_bytes"].get("ballast", 0) == 0 for step in steps)
    seconds = fmean(step["exchange_seconds"] for step in steps[1:])
    bytes_per_step = arms["decentralised"]["kv_payload_bytes_per_step"]
    assert not math.isclose(seconds, 0)
    assert seconds >= 0.5 * bytes_per_step * 8 / 5e6


def test_live_trains_for_the_given_time(tmp_path):
    """LIVE composes nothing: steps on the clock, paced, until the time is up. On a busy machine one of so few may
    overrun its time, and nothing takes it again: then the arm is said to be invalid, and why."""
    done = run_testbed(
        tmp_path, "emulate", "--bw", "50mbit", "--live", "2s", "--arms", "latent,control", "--nodes", "2",
        "--preset", PRESET, "--target", TARGET, "--name", "run", "--share", "--json", "--no-report",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "runs" / "run"
    comparison = read(folder / "comparison.json")
    assert json.loads(done.stdout) == comparison
    assert comparison["mode"] == "live"
    invalid = [why for arm in comparison["arms"] if not arm["valid"] for why in arm["why"]]
    assert bool(invalid) == bool(done.returncode)
    assert all("overrun" in why for why in invalid), invalid
    for arm in comparison["arms"]:
        steps = read(folder / arm["arm"] / "summary.json")["timed"]["steps"]
        *_, before, end = [0.0, *(step["time_seconds"] for step in steps)]
        assert before < 2 <= end


def test_host_nodes_are_the_null_twin(tmp_path):
    """No world, no shaping: links are modelled and say so; nothing is called measured. And replicas that are not alike
    are said to be so."""
    (tmp_path / "own.toml").write_text(
        'name = "own"\nexchange = "local"\nsync = "average"\nlink = "bw"\nweights = { scope = "attention" }\n'
    )
    done = run_testbed(
        tmp_path, "emulate", "--bw", "100mbit", "--backend", "host", "--arms", "decentralised,own.toml", "--nodes", "2",
        "--preset", PRESET, "--target", TARGET, "--name", "run", "--share", "--no-report",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "unshaped" in done.stdout
    arms = read(tmp_path / "runs" / "run" / "comparison.json")["arms"]
    assert {arm["link"] for arm in arms} == {"modelled"}
    assert {arm["wire_bytes_per_step"] for arm in arms} == {None}
    assert [arm["caution"] for arm in arms] == [None, OWN_REPLICAS]
    assert done.stdout.count(OWN_REPLICAS) == 1
