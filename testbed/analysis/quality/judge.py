"""What arms know at the end of a `testbed learn`: losses, recall, and how much of an exchange's worth each recovers.

The recovered fraction of an arm is (control − arm) / (control − exact), in nats on tokens whose evidence lies on
another node, or in the share of such answers that are right. It is taken seed by seed, where all three arms start
from the same weights and read the same sequences, and then averaged: means stand with the 95 % interval of Student's
t over seeds. A task on which control and exact are less than five deviations of exact over seeds apart shows nothing.

What nulls recover, which send no K and V worth the name, nobody needs a codec for. So beside it stands what an arm
recovers beyond them, (null − arm) / (null − exact), in each seed by the null that recovers most there. It is void, and
the task does not ask for what a codec compresses, unless the lower end of the interval of (null − exact) lies above
half of (control − exact). An arm is at parity where the upper end of its loss above exact is at most the margin that
the experiment's file names, and the lower end of what it recovers beyond nulls at least 0.95.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from testbed.errors import UsageError
from testbed.records import (
    ArmQuality,
    CodeState,
    ComparisonRecord,
    Interval,
    LearnedCell,
    NullQuality,
    PresetQuality,
    QualityRecord,
    TimesOf,
)

__all__ = [
    "APART",
    "COLUMNS",
    "PARITY",
    "SCHEMA_VERSION",
    "WORTH",
    "NamedCell",
    "code_of",
    "interval",
    "judge",
    "results_table",
]

SCHEMA_VERSION = 1
APART = 5.0
"""So many deviations of exact over seeds must lie between control and exact."""
WORTH = 0.5
"""So much of what exchange is worth the best null must leave, for a task to ask for it."""
PARITY = 0.95
"""So much beyond nulls an arm must recover to be at parity."""

VALIDATED = ("val_loss", "val_loss_text", "val_loss_remote", "val_loss_local", "recall_accuracy_remote")
_STATIC = (
    "codec",
    "exchange",
    "split",
    "sync",
    "scope",
    "tokens",
    "steps",
    "bytes_forward",
    "bytes_backward",
    "kv_bytes",
    "weight_bytes",
)
COLUMNS = ("preset", "arm", "seed", "step", *VALIDATED, "val_loss_exact", "drift", "clipped", *_STATIC)
"""Of the table: a row per arm, seed and validation; `val_loss_exact` (with plain attention), `drift` of replicas and
the share of steps whose gradients were `clipped`, a rank's mean, at the end only."""

# 97.5 % of Student's t by degrees of freedom (any statistical table); beyond, the normal's within 0.5 %
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip

Kind = Literal["measured", "modelled"]


@dataclass(frozen=True, kw_only=True)
class NamedCell:
    """A cell as it lies on disk, with the names of its preset and its arm."""

    preset: str
    arm: str
    cell: LearnedCell


def results_table(cells: Sequence[NamedCell]) -> pd.DataFrame:
    """The tidy table of cells."""
    data: dict[str, str] = {}
    for each in cells:
        if data.setdefault(each.preset, each.cell.corpus_sha256) != each.cell.corpus_sha256:
            raise UsageError(
                f"cells of preset {each.preset} have read different data (another Python, a corpus prepared again): "
                "learn them all again under another --name"
            )
    table = pd.DataFrame([row for each in cells for row in _rows(each)], columns=list(COLUMNS))
    table.attrs["schema_version"] = SCHEMA_VERSION
    return table


def _rows(learned: NamedCell) -> list[dict[str, Any]]:
    cell = learned.cell
    config, payload = cell.config, cell.payload_bytes_per_step
    preset, arm = config["preset"], config["arm"]
    every_step = payload.get("weights", 0)
    static = {
        "preset": learned.preset,
        "arm": learned.arm,
        "seed": config["seed"],
        "codec": {"local": "none", "ids": "ids"}.get(arm["exchange"], arm["codec"]["name"]),
        **{key: arm[key] for key in ("exchange", "split", "sync")},
        "scope": arm["weights"]["scope"],
        "tokens": (preset["warm_steps"] + preset["steps"]) * preset["batch"] * preset["context"],
        "steps": preset["steps"],
        "bytes_forward": cell.bytes_per_token_layer["forward"],
        "bytes_backward": cell.bytes_per_token_layer["backward"],
        "kv_bytes": sum(count for channel, count in payload.items() if channel not in ("other", "weights")),
        "weight_bytes": every_step + cell.sync_bytes_each / preset["sync_every"],
    }
    rows = [static | {key: getattr(each, key) for key in ("step", *VALIDATED)} for each in cell.validations]
    rows[-1]["val_loss_exact"] = cell.validation_exact.val_loss
    rows[-1]["drift"] = cell.drift[-1][1] if cell.drift else None
    rows[-1]["clipped"] = cell.clipped  # cells of before do not say
    return rows


def judge(
    table: pd.DataFrame,
    *,
    title: str,
    exact: str,
    control: str,
    nulls: Sequence[str] = (),
    margin: float = math.inf,
    asked: int,
    code: Sequence[CodeState] = (),
    times: ComparisonRecord | None = None,
) -> QualityRecord:
    """The whole answer: by preset, every arm against the exact exchange, against none, and against the `nulls`.
    `margin`: nats above exact up to which an arm may be at parity. `asked`: cells there are to
    be, for a table of some of them says so; as it does where more than one state of the `code` has learned them."""
    presets = [
        _judge_preset(str(name), rows, exact, control, nulls, margin, times)
        for name, rows in table.groupby("preset", sort=False)
    ]
    return QualityRecord(
        title=title,
        exact=exact,
        control=control,
        nulls=tuple(nulls),
        margin_nats=margin if nulls else None,
        cells=len(table.groupby(["preset", "arm", "seed"])),
        cells_asked=asked,
        code=tuple(code),
        interval="95 % interval by Student's t over seeds",
        times=None if times is None else TimesOf(of=times.name, mode=times.mode, pace=times.pace),
        presets=tuple(presets),
    )


def code_of(cells: Sequence[NamedCell]) -> list[CodeState]:
    """The states of the code by which cells were learned, that of most cells first: sources, torch, cells by commit.

    `sources` is None of cells that did not record them; those are told apart by their commit.
    """
    found: dict[tuple[str, str], Counter[str]] = {}
    sources: dict[tuple[str, str], str | None] = {}
    for each in cells:
        where = each.cell.environment
        commit = (where.commit or "unknown")[:9] + (" with changes" if where.dirty else "")
        key = where.sources_sha256 or commit, where.packages["torch"]
        sources[key] = where.sources_sha256
        found.setdefault(key, Counter())[commit] += 1
    states = [
        CodeState(sources=sources[key], torch=key[1], commits=dict(commits), cells=commits.total())
        for key, commits in found.items()
    ]
    return sorted(states, key=lambda state: -state.cells)


def _judge_preset(
    name: str,
    rows: pd.DataFrame,
    exact: str,
    control: str,
    nulls: Sequence[str],
    margin: float,
    times: ComparisonRecord | None,
) -> PresetQuality:
    final = rows.groupby(["arm", "seed"], sort=False).tail(1).set_index(["arm", "seed"])
    clock = _clock(rows, times)
    arms = [_judge_arm(str(arm), final, rows, exact, control, clock) for arm in dict.fromkeys(rows["arm"])]
    sensitivity = _sensitivity(final, exact, control)
    ratio = sensitivity["val_loss_apart"]
    shows = None if ratio is None else ratio >= APART
    null = _best_null(final, exact, control, nulls, shows)
    return PresetQuality(
        preset=name,
        **sensitivity,
        shows=shows,
        null=null,
        horizon_seconds=clock.horizon,
        arms=tuple(_beyond(arm, final, exact, null, margin) for arm in arms),
    )


def _best_null(
    final: pd.DataFrame, exact: str, control: str, nulls: Sequence[str], shows: bool | None
) -> NullQuality | None:
    """What the best null of each seed leaves to exact, the null that is best in the mean, and whether what is left is
    enough for the task to count: None where a null is missing, or seeds are too few to tell."""
    key = "val_loss_remote"
    there = [name for name in nulls if _comparable(final, name, exact, control)]
    if not there:
        return None
    losses = pd.DataFrame({name: _seeds(final, name, key) for name in dict.fromkeys((*there, exact, control))}).dropna()
    if losses.empty:
        return None
    best = losses[there].min(axis=1)
    gap, worth = interval(best - losses[exact]), float((losses[control] - losses[exact]).mean())
    assert gap is not None, "there are losses"
    counts = None
    if gap.low is not None and shows is not None:
        counts = shows and worth > 0 and gap.low > WORTH * worth
        if counts and set(there) != set(nulls):
            counts = None  # one that has not been learned may yet solve it
    return NullQuality(
        arm=str(losses[there].mean().idxmin()),
        missing=tuple(name for name in nulls if name not in there),
        gap=gap,
        share=gap.mean / worth if worth > 0 else None,
        counts=counts,
        loss={int(seed): float(loss) for seed, loss in best.items()},  # pyrefly: ignore
    )


def _comparable(final: pd.DataFrame, arm: str, *others: str) -> bool:
    """Whether all of these were learned, and from as many tokens."""
    there = final.index.get_level_values("arm")
    if any(name not in there for name in (arm, *others)):
        return False
    return len({final.loc[name].iloc[0]["tokens"] for name in (arm, *others)}) == 1


def _beyond(arm: ArmQuality, final: pd.DataFrame, exact: str, null: NullQuality | None, margin: float) -> ArmQuality:
    """With what an arm recovers beyond the best null, seed by seed, and whether it is at parity; None where that is
    void."""
    if null is None or not null.counts or arm.val_loss_above_exact is None:
        return arm
    mine, best = (_seeds(final, name, "val_loss_remote") for name in (arm.arm, exact))
    worst = pd.Series(null.loss, dtype=float)
    both = mine.index.intersection(best.index).intersection(worst.index)
    beyond = interval((worst[both] - mine[both]) / (worst[both] - best[both]))
    parity, most = None, arm.val_loss_above_exact.high
    if beyond is not None and beyond.low is not None and most is not None:
        parity = most <= margin and beyond.low >= PARITY
    return replace(arm, recovered_beyond_nulls=beyond, parity=parity)


def _sensitivity(final: pd.DataFrame, exact: str, control: str) -> dict[str, float | None]:
    """How far control lies from exact, in deviations of exact over seeds; None where that cannot be told."""
    found: dict[str, float | None] = {}
    for key in ("val_loss", "val_loss_remote"):
        best, worst = _seeds(final, exact, key), _seeds(final, control, key)
        both = best.index.intersection(worst.index)
        spread = float(best.std(ddof=1)) if len(best) > 1 else None
        gap = float((worst[both] - best[both]).mean()) if len(both) else None
        found |= {f"{key}_spread": spread, f"{key}_gap": gap}
        found[f"{key}_apart"] = None if gap is None or not spread else gap / spread
    return found


def _seeds(final: pd.DataFrame, arm: str, key: str) -> pd.Series:
    """An arm's figure by seed."""
    if arm not in final.index.get_level_values("arm"):
        return pd.Series(dtype=float)
    return final.loc[arm][key].astype(float).dropna()


def _judge_arm(
    arm: str, final: pd.DataFrame, rows: pd.DataFrame, exact: str, control: str, clock: "_Clock"
) -> ArmQuality:
    own = final.loc[arm]
    static = {key: _plain(own.iloc[0][key]) for key in _STATIC}
    comparable = all(
        other not in final.index.get_level_values("arm") or final.loc[other].iloc[0]["tokens"] == static["tokens"]
        for other in (exact, control)
    )
    loss, best = _seeds(final, arm, "val_loss"), _seeds(final, exact, "val_loss")
    both = loss.index.intersection(best.index) if comparable else []
    judged = ArmQuality(
        arm=arm,
        seeds=tuple(int(seed) for seed in own.index),
        **static,
        val_loss=interval(loss),
        val_loss_vs_exact=interval(loss[both] / best[both] - 1),
        val_loss_above_exact=interval(loss[both] - best[both]),
        val_loss_exact_attention=interval(_seeds(final, arm, "val_loss_exact")),
        recall_accuracy_remote=interval(_seeds(final, arm, "recall_accuracy_remote")),
        recovered_loss=interval(_recovered(final, arm, exact, control, "val_loss_remote", comparable)),
        recovered_recall=interval(_recovered(final, arm, exact, control, "recall_accuracy_remote", comparable)),
        drift=interval(_seeds(final, arm, "drift")),
        clipped=interval(_seeds(final, arm, "clipped")),
    )
    return clock.judge(judged, rows, final, exact, control)


def _recovered(final: pd.DataFrame, arm: str, exact: str, control: str, key: str, comparable: bool) -> pd.Series:
    """(control − arm) / (control − exact) by seed, where all three are there and have read as many tokens."""
    mine, best, worst = (_seeds(final, name, key) for name in (arm, exact, control))
    both = mine.index.intersection(best.index).intersection(worst.index)
    worth = worst[both] - best[both]
    if not comparable or not len(both) or (worth == 0).any():
        return pd.Series(dtype=float)
    return (worst[both] - mine[both]) / worth


def interval(values: pd.Series | Sequence[float]) -> Interval | None:
    """Mean, half the width of its 95 % interval (None of a single value), and the number of values."""
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        return None
    half = None
    if len(numbers) > 1:
        t = _T[len(numbers) - 2] if len(numbers) - 2 < len(_T) else 1.96
        half = float(t * numbers.std(ddof=1) / math.sqrt(len(numbers)))
    return Interval(mean=float(numbers.mean()), half=half, count=len(numbers))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


class _Clock:
    """What each arm knows when the fastest of those that were timed has ended."""

    def __init__(self, seconds: dict[str, float], kinds: dict[str, Kind], steps: dict[str, int]) -> None:
        self.seconds, self.kinds = seconds, kinds
        whole = {arm: seconds[arm] * steps[arm] for arm in seconds if arm in steps}
        self.horizon = min(whole.values()) if whole else None

    def judge(self, arm: ArmQuality, rows: pd.DataFrame, final: pd.DataFrame, exact: str, control: str) -> ArmQuality:
        """Losses between two validations are interpolated; measured in what an exchange is worth at equal steps."""
        if self.horizon is None or arm.arm not in self.seconds:
            return arm
        seconds = self.seconds[arm.arm]
        mine = _at(rows, arm.arm, self.horizon / seconds)
        best, worst = _seeds(final, exact, "val_loss_remote"), _seeds(final, control, "val_loss_remote")
        both = mine.index.intersection(best.index).intersection(worst.index)
        return replace(
            arm,
            step_seconds=seconds,
            step_seconds_kind=self.kinds[arm.arm],
            steps_in_time=self.horizon / seconds,
            val_loss_remote_in_time=interval(mine),
            recovered_in_time=interval((worst[both] - mine[both]) / (worst[both] - best[both])),
        )


def _at(rows: pd.DataFrame, arm: str, step: float) -> pd.Series:
    """An arm's loss on remote tokens at a step, by seed."""
    own = rows[rows["arm"] == arm]
    return pd.Series(
        {
            seed: float(np.interp(step, curve["step"], curve["val_loss_remote"].astype(float)))
            for seed, curve in own.groupby("seed", sort=False)
        },
        dtype=float,
    )


def _clock(rows: pd.DataFrame, times: ComparisonRecord | None) -> _Clock:
    """Seconds of a step with its share of synchronisation, as an emulated run has them; of arms that are valid."""
    seconds: dict[str, float] = {}
    kinds: dict[str, Kind] = {}
    for arm in times.arms if times else ():
        if arm.valid and arm.arm in set(rows["arm"]):
            seconds[arm.arm] = arm.step_seconds_mean + (arm.sync_seconds_per_step or 0.0)
            kinds[arm.arm] = "modelled" if arm.link == "modelled" else "measured"
    return _Clock(seconds, kinds, rows.groupby("arm")["steps"].first().to_dict())
