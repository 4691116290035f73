"""A sweep's tables and figures, on invented numbers whose law is known."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from testbed.analysis.report import write_report
from testbed.analysis.sweep.figures import (
    crossovers,
    data_bandwidth_needed,
    data_loss_against_bandwidth,
    data_throughput,
    sweep_figures,
    write_sweep_figures,
)
from testbed.analysis.sweep.results import conclude, conclude_commands, load_sweep
from testbed.analysis.sweep.summary import print_sweep, verdict
from testbed.errors import UsageError
from testbed.records import CommandEntry, CommandSummary, SweepConfig, write_json
from tests.analysis.made_up_sweep import BITS, COMPUTE, EXCHANGES, LOSS, MACHINE, made_up_sweep, seconds


def test_a_row_per_cell_and_seed(tmp_path):
    """With its units in the names, and what it is against the exact exchange and the control of its point and seed."""
    made_up_sweep(tmp_path)
    sweep = conclude(tmp_path, {})
    assert len(sweep.table) == 4 * 2 * 3 * 2
    row = sweep.table.query("arm == 'subspace' and bw == '100mbit' and delay == '20ms' and seed == 1").iloc[0]
    assert row["bandwidth_bps"] == 100e6
    assert row["one_way_delay_seconds"] == 0.02
    assert row["speedup"] == pytest.approx(seconds("decentralised", 100e6, 0.02) / seconds("subspace", 100e6, 0.02))
    assert row["recovered_fraction"] == pytest.approx(0.8)
    assert row["hours"] == pytest.approx(20 * seconds("subspace", 100e6, 0.02) / 3600)
    read = load_sweep(tmp_path)
    pd.testing.assert_frame_equal(read.table, sweep.table)
    pd.testing.assert_frame_equal(read.curves, sweep.curves)
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(sweep.table)


def test_loss_against_time_is_learned_loss_on_the_timed_clock(tmp_path):
    """The same clock for every seed, another loss."""
    made_up_sweep(tmp_path, rates=(1e9,), delays=(0.0,))
    curves = conclude(tmp_path, {}).curves
    end = curves[(curves["arm"] == "decentralised") & (curves["step"] == 20)]
    assert end["time_seconds"].to_list() == pytest.approx([20 * 17.0] * 2)
    assert end["val_loss"].diff().iloc[1] == pytest.approx(0.01)


def test_what_cannot_be_told_apart_is_unresolved(tmp_path):
    """Two arms a per mille apart, known to a per cent each; known to far less, as a control; and not known at all."""
    for half, resolved in ((0.01, False), (1e-6, True), (None, False)):
        folder = tmp_path / f"{half}"
        made_up_sweep(folder, rates=(1e12,), delays=(0.0,), half=half)
        if resolved:  # the link's own error is part of it
            for path in folder.glob("cells/*/summary.json"):
                path.write_text(
                    path.read_text().replace('"rate_measured_bps": 1000500000000.0', '"rate_measured_bps": 1e12')
                )
        table = conclude(folder, {}).table
        assert set(table[table["arm"] == "subspace"]["resolved"]) == {resolved}


def test_failed_and_missing_cells_stay_in_the_table(tmp_path):
    """With the reason; nothing is compared with them."""
    made_up_sweep(tmp_path, failed=[("decentralised", 30e6)])
    cell = "decentralised-3e+07-0"
    sweep = conclude(tmp_path, {cell: "no such link\nmore"})
    assert sweep.record.states == {"done": 22, "failed": 1, "missing": 1}
    assert set(sweep.table[sweep.table["cell"] == cell]["why"]) == {"no such link\nmore"}
    assert sweep.table.query("arm == 'subspace' and bw == '30mbit'")["speedup"].isna().all()


def test_nothing_is_made_of_what_is_invalid(tmp_path):
    """No speed-up of it nor of what is held against it, no curve, no point of a figure; it is counted and named."""
    made_up_sweep(tmp_path, invalid=[("decentralised", 30e6)])
    sweep = conclude(tmp_path, {})
    assert sweep.record.states == {"done": 22, "invalid": 2}
    assert sweep.table.query("bw == '30mbit'")["speedup"].isna().all()
    assert not sweep.curves["cell"].str.startswith("decentralised-3e+07").any()
    assert len(data_throughput(sweep).query("arm == 'decentralised'")) == 3
    assert "2 of 24 cells are invalid" in " ".join(verdict(sweep))
    assert "subspace: a step is faster than decentralised's at 6 of 6 points" in " ".join(verdict(sweep))


def test_the_interval_holds_that_of_synchronisation(tmp_path):
    """Of a step known exactly whose averagings are 10 ± 5 s; and, measured once, it is not known at all."""
    for seconds_each, half in (([8.0, 12.0], 12.706 * 2 / 10), ([10.0], math.inf)):
        folder = tmp_path / f"{len(seconds_each)}"
        made_up_sweep(folder, rates=(1e9,), delays=(0.0,), half=0.0)
        for path in folder.glob("cells/*/summary.json"):
            data = json.loads(path.read_text()) | {"sync_seconds_each": 10.0, "sync_seconds_per_step": 1.0}
            data["timed"]["sync_seconds"] = seconds_each
            path.write_text(json.dumps(data))
        table = conclude(folder, {}).table
        assert table["seconds_per_step_ci95"].tolist() == pytest.approx([half] * 6, rel=1e-3)


def test_a_cell_of_every_point_has_one_curve(tmp_path):
    """An arm on the cluster's link is timed once for all points: a row in each, a curve once."""
    config = made_up_sweep(tmp_path, rates=(1e8, 1e9), delays=(0.0,))
    cells = (replace(each, cell="control-1e+09-0") if each.arm == "control" else each for each in config.cells)
    write_json(tmp_path / "config.json", replace(config, cells=tuple(cells)))
    sweep = conclude(tmp_path, {})
    assert len(sweep.table.query("arm == 'control'")) == 2 * 2
    assert not sweep.curves.duplicated(["cell", "arm", "seed", "step"]).any()
    points = data_loss_against_bandwidth(sweep).query("arm == 'control'")
    assert points.groupby("bandwidth_bps")["seeds"].first().tolist() == [2, 2]


@pytest.mark.parametrize(
    ("said", "kept", "note"),
    [
        (({"loss": "diverged"}, {"loss": 1.5}), ["diverged", "1.5"], ""),
        (({"loss": 2**64 + 1}, {"loss": -1}), [str(2**64 + 1), "-1"], "said_loss: integers beyond 64 bits"),
        (({"loss": 1.5}, {}), [1.5, math.nan], "1 of 2 cells printed no JSON object"),
    ],
)
def test_whatever_a_program_says_can_be_kept(tmp_path, said, kept, note):
    """A number here and a word there, a long integer, nothing; a title may hold brackets."""
    cells = [CommandEntry(cell=f"c{seed}", seed=seed, point={"var.x": x}) for seed, x in enumerate(("auto", 4))]
    config = SweepConfig(
        kind="command",
        title="Trial [/b] [v2]",
        question="",
        exact="",
        control="",
        sweep={},
        varied=("var.x",),
        excluded=(),
        commands=tuple(cells),
    )
    write_json(tmp_path / "config.json", config)
    for cell, words in zip(cells, said, strict=True):
        summary = CommandSummary(
            cell=cell.cell,
            point=cell.point,
            seed=cell.seed,
            command=("true",),
            wall_seconds=1.0,
            exit_status=0,
            sent_bytes={"n0": 1},
            received_bytes={"n0": 1},
            pairs=(),
            said=words,
        )
        write_json(tmp_path / "cells" / cell.cell / "summary.json", summary)
    sweep = conclude_commands(tmp_path, {})
    np.testing.assert_equal(load_sweep(tmp_path).table["said_loss"].tolist(), kept)
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2
    console = Console(width=140, record=True, force_terminal=False)
    print_sweep(sweep, console)
    text = " ".join(console.export_text().split())
    assert "Trial [/b] [v2]" in text
    assert note in text
    assert ("•" in text) is bool(note)


@pytest.mark.parametrize("name", ["results.parquet", "sweep.json"])
def test_half_a_file_is_told(tmp_path, name):
    """As an older testbed could leave it; what to type."""
    made_up_sweep(tmp_path, rates=(1e9,))
    conclude(tmp_path, {})
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="type testbed sweep again"):
        load_sweep(tmp_path)


def test_the_bandwidth_needed_follows_the_law(tmp_path):
    """a + b/B solved for B; none where latency alone takes more; zero without an exchange."""
    made_up_sweep(tmp_path)
    table = data_bandwidth_needed(conclude(tmp_path, {})).set_index(["arm", "one_way_delay_seconds", "utilisation"])
    for arm in ("decentralised", "subspace"):
        for delay, share in ((0.0, 0.5), (0.0, 0.99), (0.02, 0.75)):
            needed = BITS[arm] / (COMPUTE / share - COMPUTE - EXCHANGES * delay)
            assert table.loc[(arm, delay, share), "bandwidth_bps"] == pytest.approx(needed, rel=1e-6)
    assert math.isnan(table["bandwidth_bps"].loc[("subspace", 0.02, 0.99)])
    assert table.loc[("control", 0.0, 0.99), "bandwidth_bps"] == 0.0
    assert table["largest_residual"].max() < 1e-9


def test_a_crossover_lies_where_the_lines_meet():
    """In logarithms, between two bandwidths."""
    x = np.array([1e6, 1e8])
    table = pd.DataFrame(
        {
            "bandwidth_bps": [*x, *x],
            "arm": ["exact"] * 2 + ["coded"] * 2,
            "tokens_per_second": [1.0, 100.0, 10.0, 10.0],
            "resolved": [True] * 4,
        }
    )
    ((at, level, words),) = crossovers(table, "exact")
    assert (at, level) == (pytest.approx(1e7), pytest.approx(10.0))
    assert "exact overtakes coded" in words
    assert crossovers(table.assign(tokens_per_second=[1.0, 2.0, 3.0, 4.0]), "exact") == []
    ((_, _, words),) = crossovers(table.assign(tokens_per_second=[10.0, 10.0, 1.0, 100.0]), "exact")
    assert "coded overtakes exact" in words
    assert crossovers(table.assign(resolved=[True, True, True, False]), "exact") == []


def test_every_figure_draws_and_leaves_its_table(tmp_path):
    """Whatever failed; each with a csv of what it shows."""
    made_up_sweep(tmp_path, failed=[("subspace", 1e9)])
    sweep = conclude(tmp_path, {"subspace-1e+09-0": "no"})
    files = write_sweep_figures(sweep, tmp_path / "figures")
    assert len(files) == 3 * len(sweep_figures(sweep))
    assert all(file.stat().st_size for file in files)
    throughput = pd.read_csv(tmp_path / "figures" / "throughput.csv")
    assert len(throughput) == len(data_throughput(sweep)) == 4 + 3 + 4


def test_nothing_is_done_and_figures_still_draw(tmp_path):
    """A sweep whose every cell failed."""
    made_up_sweep(tmp_path, rates=(1e9,), delays=(0.0,), failed=[(arm, 1e9) for arm in BITS])
    sweep = conclude(tmp_path, {f"{arm}-1e+09-0": "no" for arm in BITS})
    write_sweep_figures(sweep, tmp_path / "figures")
    assert verdict(sweep) == []


def test_the_summary_says_what_the_table_says(tmp_path):
    """In words, and in a table that fits."""
    made_up_sweep(tmp_path, failed=[("control", 1e9)])
    sweep = conclude(tmp_path, {"control-1e+09-0": "no such link"})
    console = Console(width=140, record=True, force_terminal=False)
    print_sweep(sweep, console)
    text = " ".join(console.export_text().split())
    assert "subspace: a step is faster than decentralised's at 8 of 8 points" in text
    assert "recovers 0.8 of what exchange is worth (over 2 seeds)" in text
    assert "FAILED: control at bw 1000mbit, delay 0ms: no such link" in text


def test_where_exchange_is_worth_nothing_no_share_of_it_is_given(tmp_path, monkeypatch):
    """The control's loss 4 % above the exact exchange's; the sentence says why."""
    monkeypatch.setitem(LOSS, "control", 1.05)
    made_up_sweep(tmp_path, rates=(1e9,))
    sweep = conclude(tmp_path, {})
    assert sweep.table["recovered_fraction"].isna().all()
    assert any(
        "At 4 of 4 points and seeds the loss without exchange is less than 8 % above" in each for each in verdict(sweep)
    )


def test_what_is_suspect_older_or_of_another_machine_is_said_everywhere(tmp_path):
    """In the table's state, a sentence, the caption of every figure and the report; without any of it nothing is."""
    made_up_sweep(tmp_path / "clean")
    clean = conclude(tmp_path / "clean", {})
    made_up_sweep(tmp_path / "sweep", suspect=[("subspace", 1e9)], older=[("control", 1e9)])
    file = tmp_path / "sweep" / "learned" / "subspace-1.json"
    trainer = json.loads(file.read_text())
    file.write_text(json.dumps(trainer | {"environment": asdict(MACHINE) | {"kernel": "6.2"}}))
    sweep = conclude(tmp_path / "sweep", {})
    console = Console(width=160, record=True, force_terminal=False)
    print_sweep(sweep, console)
    text = " ".join(console.export_text().split())
    assert (text.count("done, suspect"), text.count("done, older")) == (2, 2)
    said = (
        "2 of 24 cells have suspect steps or synchronisations",
        "2 of 24 cells are of another state and were kept: loss of other code",
        "Cells come from 2 machines, or states of one, that differ in kernel",
    )
    assert all(words in text for words in said)
    assert not any(words[5:] in " ".join(verdict(clean)) for words in said)
    for name in ("sweep", "clean"):
        captions = [
            " ".join(each.get_text() for each in draw().texts).replace("\n", " ")
            for draw, _ in sweep_figures({"sweep": sweep, "clean": clean}[name]).values()
        ]
        assert all((words in caption) is (name == "sweep") for caption in captions for words in said)
    page = write_report(tmp_path / "sweep").read_text()
    assert page.count("done, suspect") >= 2
    assert all(words in page for words in said)


@pytest.mark.parametrize("name", ["sweep.json", "results.parquet", "curves.parquet"])
def test_what_is_missing_is_named(tmp_path, name):
    """And what to type."""
    made_up_sweep(tmp_path, rates=(1e9,))
    conclude(tmp_path, {})
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=f"holds no {name}"):
        load_sweep(tmp_path)


def test_another_version_is_refused(tmp_path):
    """With both."""
    made_up_sweep(tmp_path, rates=(1e9,))
    conclude(tmp_path, {})
    record = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(record | {"schema_version": 7}))
    with pytest.raises(UsageError, match="schema version 7, and this testbed reads version 3 only"):
        load_sweep(tmp_path)


def test_trainings_of_other_lengths_are_not_related(tmp_path):
    """Half as many steps are another training: no share recovered, and no sentence about it."""
    made_up_sweep(tmp_path, rates=(1e9,))
    whole = conclude(tmp_path, {}).table
    assert (whole.loc[whole["arm"] == "subspace", "recovered_fraction"] > 0.5).all()
    for file in (tmp_path / "learned").glob("subspace-*.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"losses": record["losses"][:10]}))
    sweep = conclude(tmp_path, {})
    assert sweep.table.loc[sweep.table["arm"] == "subspace", "recovered_fraction"].isna().all()
    assert not any("it recovers" in each for each in verdict(sweep))
    assert "subspace learned from another number of steps than decentralised" in " ".join(verdict(sweep))
