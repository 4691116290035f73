"""The answer of `testbed learn` as files: a table for people, tables for programs, figures."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from testbed.analysis.plot.style import styled
from testbed.analysis.quality.figures import data_recovered, figure_recovered
from testbed.analysis.quality.judge import APART, PARITY, WORTH
from testbed.config.arm import OWN_REPLICAS
from testbed.formats import MISSING, significant, trimmed, usable
from testbed.records import (
    ArmQuality,
    CodeState,
    Interval,
    NullQuality,
    PresetQuality,
    QualityRecord,
    TimesOf,
    plain,
)

__all__ = ["markdown", "mixture", "write_quality"]


def write_quality(record: QualityRecord, table: pd.DataFrame, folder: Path) -> None:
    """quality.{json,md}, results.{parquet,csv} and figures/, each by rename."""
    place = folder / "figures"
    place.mkdir(parents=True, exist_ok=True)
    _whole(folder / "quality.json", lambda path: path.write_text(json.dumps(plain(record), indent=2) + "\n"))
    _whole(folder / "quality.md", lambda path: path.write_text(markdown(record)))
    _whole(folder / "results.parquet", lambda path: table.to_parquet(path, index=False))
    _whole(folder / "results.csv", lambda path: table.to_csv(path, index=False))
    drawn = data_recovered(record)
    _whole(place / "recovered.csv", lambda path: drawn.to_csv(path, index=False))
    if len(drawn):
        figure = figure_recovered(record)
        with styled():
            _whole(place / "recovered.svg", lambda path: figure.savefig(path, format="svg", metadata={"Date": None}))
            _whole(place / "recovered.png", lambda path: figure.savefig(path, format="png", dpi=160))


def _whole(path: Path, write: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)


def markdown(record: QualityRecord) -> str:
    """The table of every preset, with what it can and cannot show."""
    lines = [f"# {record.title}", ""]
    if record.cells < record.cells_asked:
        lines += [f"**{record.cells} of {record.cells_asked} cells are learned so far.**", ""]
    if len(record.code) > 1:
        lines += [f"**{mixture(record)}**", ""]
    lines += [
        f"Against `{record.exact}` (exchanges everything) and `{record.control}` (nothing), seed by seed; "
        f"mean ± {record.interval}. Recovered: (control − arm) / (control − exact), of the loss and of the recall "
        "on tokens whose evidence lies on another node. Bytes: per token, layer and direction, to one peer.",
        "",
    ]
    if record.nulls:
        names = ", ".join(f"`{name}`" for name in record.nulls)
        lines += [
            f"Nulls: {names}. Beyond nulls: (null − arm) / (null − exact), by the best null of each seed; void where "
            f"the lower end of (null − exact) is not above {WORTH:g} of (control − exact). Parity: at most "
            f"{record.margin_nats:g} nats above exact at the upper end, and at least {PARITY:g} beyond nulls at the "
            "lower.",
            "",
        ]
    for preset in record.presets:
        lines += [*_preset(preset, record.times, nulls=bool(record.nulls)), ""]
    return "\n".join(lines).rstrip() + "\n"


def mixture(record: QualityRecord) -> str:
    """That not all cells were learned by the same code, and how many by which."""
    states = [f"{state.cells} by {_sources(state)} with PyTorch {state.torch}" for state in record.code]
    return f"Not all cells were learned by the same code: {'; '.join(states)}. Arms may differ for that alone."


def _sources(state: CodeState) -> str:
    commits = ", ".join(
        f"{commit} ({count})" if len(state.commits) > 1 else commit for commit, count in state.commits.items()
    )
    return f"sources {state.sources[:9]} (commit {commits})" if state.sources else f"commit {commits}"


def _preset(preset: PresetQuality, times: TimesOf | None, *, nulls: bool) -> list[str]:
    lines = [f"## {preset.preset}", "", _shows(preset), *_of_null(preset.null), ""]
    columns = [
        "arm",
        "bytes",
        "seeds",
        "validation loss",
        "above exact, nats",
        "remote recall",
        "recovered, loss",
        "recovered, recall",
        *(["beyond nulls", "parity"] if nulls else []),
    ]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join([*_row(arm), *(_beyond(arm) if nulls else [])]) + " |" for arm in preset.arms]
    own = [f"`{arm.arm}`" for arm in preset.arms if arm.scope == "attention"]
    if own:
        lines += ["", f"{', '.join(own)}: {OWN_REPLICAS}."]
    clipped = [f"`{arm.arm}` {significant(arm.clipped.mean, 2)}" for arm in preset.arms if arm.clipped]
    if clipped:
        lines += ["", f"Share of steps whose gradients were clipped, a rank's mean: {', '.join(clipped)}."]
    if preset.horizon_seconds is not None and times is not None:
        lines += ["", *_in_time(preset, times)]
    return lines


def _shows(preset: PresetQuality) -> str:
    gap, spread, apart = preset.val_loss_gap, preset.val_loss_spread, preset.val_loss_apart
    if apart is None:
        return "What exchange is worth here cannot be told: it takes exact and control, and two seeds of exact."
    words = (
        f"Control lies {significant(gap)} nats above exact, whose deviation over seeds is {significant(spread, 2)}: "
        f"{significant(apart)} times that."
    )
    return words if preset.shows else f"{words} **Less than {APART:g} times: this task shows nothing.**"


def _of_null(null: NullQuality | None) -> list[str]:
    """What the best null leaves."""
    if null is None:
        return []
    left = (
        f"The best null of each seed (in the mean `{null.arm}`) lies {_with(null.gap, 4)} nats above exact on "
        "remote tokens"
    )
    if null.share is not None:
        left += f", {significant(null.share, 3).replace('-', '−')} of what exchange is worth there"
    verdict = {
        None: "Whether this task counts cannot be told yet: it takes two seeds, and every null"
        + (f" ({', '.join(f'`{name}`' for name in null.missing)} not learned)." if null.missing else "."),
        True: "**This task counts.**",
        False: "**This task does not count: it does not ask for what a codec compresses.**",
    }[null.counts]
    return ["", f"{left}. {verdict}"]


def _beyond(arm: ArmQuality) -> list[str]:
    told = {None: MISSING, True: "yes", False: "no"}[arm.parity]
    return [_with(arm.recovered_beyond_nulls, 3), told]


def _row(arm: ArmQuality) -> list[str]:
    own = arm.split == "batch"
    return [
        f"`{arm.arm}`" + (f" ({_weights(arm)})" if arm.sync == "average" else ""),
        "0 (whole sequences)" if own else trimmed(arm.bytes_forward),
        str(len(arm.seeds)),
        _with(arm.val_loss, 3),
        _with(arm.val_loss_above_exact, 4),
        _with(arm.recall_accuracy_remote, 3),
        _with(arm.recovered_loss, 3),
        _with(arm.recovered_recall, 3),
    ]


def _weights(arm: ArmQuality) -> str:
    drift = arm.drift
    return "averaged" + (f", drift {significant(drift.mean, 2)}" if drift else "")


def _in_time(preset: PresetQuality, times: TimesOf) -> list[str]:
    """The table at equal time."""
    timed = [arm for arm in preset.arms if arm.step_seconds is not None]
    paced = times.pace != "none"
    return [
        f"At equal time, when the fastest has ended (step times of `{times.of}`; links as marked, compute "
        f"{'modelled' if paced else 'measured'}, its synchronisation spread over steps; losses between two validations "
        "interpolated; of what exchange is worth at equal steps):",
        "",
        "| arm | seconds per step | steps | recovered, loss |",
        "|---|---|---|---|",
        *(
            f"| `{arm.arm}` | {significant(arm.step_seconds)} ({arm.step_seconds_kind}) "
            f"| {significant(arm.steps_in_time)} | {_with(arm.recovered_in_time, 3)} |"
            for arm in timed
        ),
    ]


def _with(value: Interval | None, decimals: int) -> str:
    """A mean and its interval: "1.830 ± 0.004"."""
    if value is None or not usable(value.mean):
        return MISSING
    text = f"{value.mean:.{decimals}f}"
    if usable(value.half):
        text += f" ± {value.half:.{decimals}f}"
    return text.replace("-", "−")
