"""Losses as TensorBoard events, read back by TensorBoard's own reader."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from testbed.analysis.sweep.results import conclude
from testbed.cli.tensorboard import export
from testbed.collector.metrics import read_metrics
from testbed.errors import UsageError
from tests.analysis.made_up_sweep import made_up_sweep


def scalars(folder, name):
    """[(step, value)] of a writer's folder."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_sweep_is_a_writer_per_cell_and_seed(tmp_path):
    """With the losses of its curves."""
    made_up_sweep(tmp_path, rates=(1e9,), delays=(0.0,))
    sweep = conclude(tmp_path, {})
    target = export(tmp_path, print)
    assert len(list(target.iterdir())) == 6
    found = scalars(target / "bw_1000mbit__delay_0ms_subspace_1", "val_loss")
    rows = sweep.curves.query("arm == 'subspace' and seed == 1").dropna(subset="val_loss")
    assert [step for step, _ in found] == rows["step"].to_list()
    assert [value for _, value in found] == pytest.approx(rows["val_loss"].to_list())
    with pytest.raises(UsageError, match="is there already"):
        export(tmp_path, print)


def test_a_cut_line_is_told_and_the_rest_is_read(tmp_path):
    """As a rank leaves it that is killed while it writes."""
    (tmp_path / "metrics").mkdir()
    file = tmp_path / "metrics" / "rank0.jsonl"
    file.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.5}\n{"step": 2, "lo')
    lines, problems = read_metrics(file)
    assert [line["step"] for line in lines] == [0, 1]
    assert len(problems) == 1
    assert "rank0.jsonl, line 3 is cut or broken" in problems[0]
    said = []
    target = export(tmp_path, said.append)
    assert said == problems
    assert scalars(target / "rank0", "loss") == [(0, 2.0), (1, 1.5)]


def test_nothing_to_export_is_said(tmp_path):
    """In a sentence, and nothing is written."""
    with pytest.raises(UsageError, match="nothing to export"):
        export(tmp_path, print)
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == "[]"
