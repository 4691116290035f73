"""A sweep's tables and figures, on invented numbers whose law is known."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import BITS, COMPUTE, EXCHANGES, made_up_sweep, seconds
from rich.console import Console

from testbed.analysis.sweep_figures import (
    crossovers,
    data_bandwidth_needed,
    data_throughput,
    sweep_figures,
    write_sweep_figures,
)
from testbed.analysis.sweep_summary import print_sweep, verdict
from testbed.analysis.sweeps import conclude, load_sweep
from testbed.errors import UsageError


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
    """Two arms a per mille apart, known to a per cent each; and, as a control, known to a hundredth of that."""
    for half, resolved in ((0.01, False), (1e-6, True)):
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
    assert sweep.record["states"] == {"done": 22, "failed": 1, "missing": 1}
    assert set(sweep.table[sweep.table["cell"] == cell]["why"]) == {"no such link\nmore"}
    assert sweep.table.query("arm == 'subspace' and bw == '30mbit'")["speedup"].isna().all()


def test_the_bandwidth_needed_follows_the_law(tmp_path):
    """a + b/B solved for B; none where latency alone takes more; zero without an exchange."""
    made_up_sweep(tmp_path)
    table = data_bandwidth_needed(conclude(tmp_path, {})).set_index(["arm", "one_way_delay_seconds", "utilisation"])
    for arm in ("decentralised", "subspace"):
        for delay, share in ((0.0, 0.5), (0.0, 0.99), (0.02, 0.75)):
            needed = BITS[arm] / (COMPUTE / share - COMPUTE - EXCHANGES * delay)
            assert table.loc[(arm, delay, share), "bandwidth_bps"] == pytest.approx(needed, rel=1e-6)
    assert math.isnan(table.loc[("subspace", 0.02, 0.99), "bandwidth_bps"])
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
        }
    )
    ((at, level, words),) = crossovers(table, "exact")
    assert (at, level) == (pytest.approx(1e7), pytest.approx(10.0))
    assert "exact overtakes coded" in words
    assert crossovers(table.assign(tokens_per_second=[1.0, 2.0, 3.0, 4.0]), "exact") == []


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
    with pytest.raises(UsageError, match="schema version 7, and this testbed reads version 1 only"):
        load_sweep(tmp_path)
