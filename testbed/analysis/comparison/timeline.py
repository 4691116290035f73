"""Time after each step of a whole run, from a few measured steps.

Loss per step does not depend on the link, so an arm is trained once and timed for a few steps only. Here its
measured step times and synchronisation events become the clock of the whole run, with a band that says how
well it is known. All times are in seconds.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

__all__ = ["compose"]


_NORMAL_95 = 1.96


def compose(
    step_seconds: Sequence[float],
    sync_seconds: Sequence[float],
    *,
    steps: int,
    sync_every: int | None,
    warm_seconds: float,
    draws: int = 200,
    seed: int = 0,
    unsure_seconds: float | None = None,
) -> pd.DataFrame:
    """Seconds passed after each of `steps` steps: columns step, time_seconds, time_low, time_high.

    `step_seconds` are measured, valid and without synchronisation; `sync_seconds` are measured events, one of
    which follows every `sync_every`-th step (None: every step); without any, none is added. The clock starts
    at `warm_seconds`. `time_seconds` is the expectation; the band holds 95 % of `draws` resampled runs.
    `unsure_seconds`: half of the 95 % interval of a step where only one was measured.
    """
    if not len(step_seconds):
        raise ValueError("no measured step to compose a run from")
    rng = np.random.default_rng(seed)
    step = np.arange(1, steps + 1)
    events = step // (sync_every or 1) if len(sync_seconds) else np.zeros_like(step)
    walks = _walks(step_seconds, draws, steps, rng)[:, step]
    if len(step_seconds) == 1 and unsure_seconds:
        walks *= 1 + unsure_seconds / _NORMAL_95 / step_seconds[0] * rng.standard_normal(draws)[:, None]
    walks += _walks(sync_seconds, draws, int(events.max(initial=0)), rng)[:, events]
    expected = step * float(np.mean(step_seconds))
    expected = expected + (events * float(np.mean(sync_seconds)) if len(sync_seconds) else 0.0)
    low, high = np.percentile(walks, [2.5, 97.5], axis=0)
    return pd.DataFrame(
        {
            "step": step,
            "time_seconds": warm_seconds + expected,
            "time_low": warm_seconds + np.minimum(low, expected),
            "time_high": warm_seconds + np.maximum(high, expected),
        }
    )


def _walks(values: Sequence[float], draws: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """[draws, count + 1] cumulative sums, from 0, of `count` values resampled from `values`.

    Resampling alone shows how steps scatter, not how little a few of them say about their mean. So each draw
    is also moved as a whole by s/√n · t(n−1), and the band agrees with `intervals.mean_interval`. One value alone has
    no spread.
    """
    sums = np.zeros((draws, count + 1))
    if len(values) and count:
        known = np.asarray(values, dtype=float)
        picks = rng.choice(known, size=(draws, count))
        if len(known) > 1:
            shift = known.std(ddof=1) / math.sqrt(len(known)) * rng.standard_t(len(known) - 1, size=draws)
            picks = np.maximum(picks + shift[:, None], 0.0)
        np.cumsum(picks, axis=1, out=sums[:, 1:])
    return sums
