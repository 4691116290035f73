"""What a large sweep costs to conclude, load and draw: 1000 cells × 1000 steps; at most 20 s and 1 GB.

.venv/bin/python benchmarks/tables.py [--cells 1000] [--steps 1000]

The cells are made up (tests/analysis/made_up_sweep.py): what is measured is this project's own reading and drawing.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from testbed.analysis.sweep.figures import write_sweep_figures
from testbed.analysis.sweep.results import conclude, load_sweep
from tests.analysis.made_up_sweep import made_up_sweep

MOST_SECONDS, MOST_BYTES = 20.0, 1e9
ARMS, DELAYS = 3, 10


def main() -> int:
    """Print seconds and peak memory; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    rates = np.geomspace(10e6, 10e9, -(-asked.cells // (ARMS * DELAYS)))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made_up_sweep(folder, rates=rates, delays=np.linspace(0, 0.1, DELAYS), seeds=(0,), steps=asked.steps)
        started = time.perf_counter()
        conclude(folder, {})
        concluded = time.perf_counter()
        sweep = load_sweep(folder)
        loaded = time.perf_counter()
        files = write_sweep_figures(sweep, folder / "figures")
        drawn = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{len(sweep.table)} cells, {len(sweep.curves):,} rows of curves, {len(files) // 3} figures")
    print(f"composed and written in {concluded - started:.1f} s")
    print(
        f"loaded in {loaded - concluded:.1f} s, every figure drawn in {drawn - loaded:.1f} s; peak {peak / 1e6:.0f} MB"
    )
    return int(drawn - concluded > MOST_SECONDS or peak > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
