"""Arms, and that everything in experiments/ can be read."""

from pathlib import Path
from typing import Any

import pytest

from testbed.config import EXPERIMENTS, Arm, WeightSync, names_in
from testbed.config.arms import arm_named
from testbed.errors import UsageError
from testbed.learn.experiment import cells_of, load_experiment

LEARNED = [path for path in sorted(EXPERIMENTS.glob("*.toml")) if "presets = " in path.read_text()]


def arm(sync: str, **weights: Any) -> Arm:
    return Arm(name="own", exchange="local", sync=sync, weights=WeightSync(**weights), link="bw")  # pyrefly: ignore


@pytest.mark.parametrize(
    "weights", [{"outer_learning_rate": 0.7}, {"outer_momentum": 0.9}, {"scope": "attention"}], ids=str
)
def test_what_is_of_averaged_weights_is_refused_where_gradients_are_summed(weights):
    """It would be passed over; how numbers are written is of both, and defaults say nothing."""
    with pytest.raises(UsageError, match="of averaged weights"):
        arm("gradients", **weights)
    assert arm("average", **weights).weights == WeightSync(**weights)
    assert arm("gradients", wire="int8", outer_learning_rate=1.0).weights.wire == "int8"


def test_every_arm_can_be_had():
    """Of those in experiments/arms."""
    assert {arm_named(each).name for each in names_in("arms")} == set(names_in("arms"))


@pytest.mark.parametrize("path", LEARNED, ids=lambda path: Path(path).stem)
def test_every_experiment_can_be_read(path):
    """Every arm of each, with the `sync` that the file gives to all."""
    experiment = load_experiment(str(path))
    cells = cells_of(experiment)
    assert len({cell.hash for cell in cells}) == len(cells)
