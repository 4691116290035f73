"""`testbed report RUN`: what a run found as one HTML file that needs nothing else to be opened.

Question, answer in words, evidence of the links, figures with their numbers, what was not valid and why, environment,
and the command to repeat it. Nothing in it is fetched or executed: no script, no font, no address.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from testbed.analysis.comparison.captions import link_words
from testbed.analysis.comparison.figures import FIGURES, write_figures
from testbed.analysis.comparison.findings import sentences
from testbed.analysis.comparison.links import rates_words
from testbed.analysis.comparison.load import Comparison, load_comparison
from testbed.analysis.plot.svg import inline_svg
from testbed.analysis.sweep.figures import sweep_figures, write_sweep_figures
from testbed.analysis.sweep.results import Sweep, load_sweep
from testbed.analysis.sweep.rows import CellRow, rows_of
from testbed.analysis.sweep.summary import verdict
from testbed.errors import UsageError
from testbed.formats import MISSING, counted, megabytes, percent, rate, significant, trimmed
from testbed.records import ArmRecord, CheckRow, Conditions, ExcludedPoint, read_json

__all__ = ["Page", "Section", "Shown", "TableShown", "page_of", "write_report", "write_run_figures"]

T = TypeVar("T")

_MOST_ROWS = 200
_LONG = 40


@dataclass(frozen=True)
class _Text:
    """What stands in a cell of a table."""

    text: str

    @property
    def long(self) -> bool:
        """Whether it should be wrapped."""
        return len(self.text) > _LONG


@dataclass(frozen=True, kw_only=True)
class TableShown:
    """A table as texts."""

    columns: list[str]
    rows: list[list[_Text]]
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure and its numbers."""

    name: str
    svg: Markup
    table: TableShown
    words: str = "the numbers of this figure"
    """Above the table, which is folded away."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    title: str
    text: str = ""
    tables: list[TableShown] = field(default_factory=list)
    figures: list[Shown] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole report."""

    title: str
    about: str
    question: str
    verdict: list[tuple[str, bool]]
    """Sentences, and whether each is of something that went wrong."""
    sections: list[Section]
    environment: list[tuple[str, str]]
    command: str


def write_report(folder: Path) -> Path:
    """`report.html` in the run's folder; raises `UsageError` if there is nothing to report."""
    page = page_of(folder)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    place = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False)
    text = place.get_template("report.html.j2").render(page=page)
    begun = folder / "report.html.partial"
    begun.write_text(text, encoding="utf-8")
    begun.replace(folder / "report.html")
    return folder / "report.html"


def write_run_figures(folder: Path) -> list[Path]:
    """The figures of a finished comparison or sweep, each with its data, in figures/ of its folder; the files."""
    if (folder / "sweep.json").is_file():
        return write_sweep_figures(load_sweep(folder), folder / "figures")
    return write_figures(load_comparison(folder), folder / "figures")


def page_of(folder: Path) -> Page:
    """What is to be said of a comparison or a sweep."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no run; testbed runs lists those that there are")
    if (folder / "sweep.json").is_file():
        sweep = load_sweep(folder)
        return _of_commands(sweep, folder) if sweep.of_commands else _of_sweep(sweep, folder)
    if (folder / "comparison.json").is_file():
        return _of_comparison(load_comparison(folder), folder)
    raise UsageError(f"{folder} holds neither comparison.json nor sweep.json: it is no finished comparison or sweep")


# -- a comparison

_STEP_COLUMNS: dict[str, Callable[[ArmRecord], str]] = {
    "arm": lambda arm: arm.arm,
    "exchange": lambda arm: arm.exchange,
    "codec": lambda arm: arm.codec or MISSING,
    "link": lambda arm: arm.link,
    "rate asked": lambda arm: rate(arm.rate_bps, digits=4),
    "rate measured": lambda arm: rate(arm.rate_measured_bps, digits=4),
    "seconds a step": lambda arm: _with(arm.step_seconds_mean, arm.step_seconds_ci95),
    "steps timed": lambda arm: trimmed(arm.steps_timed) if arm.steps_timed else MISSING,
    "K,V MB a step": lambda arm: megabytes(arm.kv_payload_bytes_per_step),
    "wire MB a step": lambda arm: megabytes(arm.wire_bytes_per_step),
}
_QUALITY_COLUMNS: dict[str, Callable[[ArmRecord], str]] = {
    "arm": lambda arm: arm.arm,
    "validation loss": lambda arm: significant(arm.final_val_loss, 4),
    "remote recall": lambda arm: significant(arm.recall_accuracy_remote),
    "recovered": lambda arm: significant(arm.recovered_fraction),
}


def _of_comparison(comparison: Comparison, folder: Path) -> Page:
    facts = comparison.record
    figures = {name: (partial(draw, comparison), partial(data, comparison)) for name, (draw, data) in FIGURES.items()}
    evidence = {"links": figures.pop("links")}
    first = folder / comparison.arms[0].arm
    return Page(
        title=facts.name,
        about=f"{link_words(facts)} · {facts.nodes} nodes · preset {facts.preset} · {_kind(facts)}",
        question="What does each exchange cost on this link, and what does it keep of what an exchange is worth?",
        verdict=[(text, style.endswith("red")) for text, style in sentences(comparison)],
        sections=[
            Section(
                title="Were the links what was asked?",
                text="Read back from the kernel, measured alone and all at once, before and after the timed steps.",
                figures=[replace(each, words=rates_words(comparison)) for each in _shown(evidence)],
            ),
            Section(title="Arms", tables=[_table(each, comparison.arms) for each in (_STEP_COLUMNS, _QUALITY_COLUMNS)]),
            Section(title="Figures", figures=_shown(figures)),
            Section(title="Validity", tables=[_table(_VALIDITY, comparison.arms)]),
        ],
        environment=_environment(first / "environment.json"),
        command=_text(first / "command.txt"),
    )


_VALIDITY: dict[str, Callable[[ArmRecord], str]] = {
    "arm": lambda arm: arm.arm,
    "valid": lambda arm: "yes" if arm.valid else "NO",
    "invalid steps": lambda arm: str(arm.invalid_steps),
    "suspect steps": lambda arm: str(arm.suspect_steps),
    "suspect synchronisations": lambda arm: str(arm.suspect_syncs),
    "why": lambda arm: "; ".join([*arm.why, arm.suspect_why or "", arm.caution or ""]).strip("; ") or MISSING,
}


def _kind(facts: Conditions) -> str:
    return f"paced as {facts.target}, {facts.mode}" if facts.target else "this machine's own speed"


# -- a sweep

_CELL_COLUMNS: dict[str, Callable[[CellRow], str]] = {
    "arm": lambda row: row.arm,
    "link": lambda row: row.link or MISSING,
    "seconds a step": lambda row: _with(row.step_seconds_mean, row.step_seconds_ci95),
    "known from": lambda row: f"{row.steps_timed} steps" if row.ci95_from == "steps" else row.ci95_from or MISSING,
    "× exact": lambda row: _speedup(row),
    "tokens/s": lambda row: significant(row.tokens_per_second),
    "computes": lambda row: percent(row.compute_utilisation),
    "validation loss": lambda row: significant(row.val_loss, 4),
    "recovered": lambda row: significant(row.recovered_fraction),
    "seed": lambda row: str(row.seed),
    "state": lambda row: ", ".join([row.state, *(row.marks if row.state in ("done", "invalid") else [])]),
}


_BAD = ("invalid", "failed", "suspect", "another state")
"""In a sentence, what a reader must not miss."""


def _of_sweep(sweep: Sweep, folder: Path) -> Page:
    record, table = sweep.record, sweep.table
    rows = rows_of(sweep)
    varied: dict[str, Callable[[CellRow], str]] = {
        key: lambda row, key=key: str(row.varied[key]) for key in record.varied
    }
    states = ", ".join(f"{count} {state}" for state, count in record.states.items())
    failed = [row for row in (*rows, *record.checks) if row.state in ("failed", "invalid")]
    problems = [_table(_FAILED_COLUMNS, _once(failed))]
    excluded: dict[str, Callable[[ExcludedPoint], str]] = {
        key: lambda each, key=key: str(each.point[key]) for key in record.varied
    }
    excluded["reason"] = lambda each: each.reason
    return Page(
        title=record.title,
        about=f"{record.cells} cells ({states}) · {table['seed'].nunique()} seeds · {', '.join(sweep.arms)}",
        question=record.question,
        verdict=[(sentence, any(word in sentence for word in _BAD)) for sentence in verdict(sweep)]
        + [(f"{counted(len(record.failed), 'cell')} failed; the reasons stand below.", True)] * bool(record.failed),
        sections=[
            Section(
                title="Were the links what was asked?",
                text="Rates of each point, asked and measured; every link was read back and measured before and after "
                "the timed steps (cells/*/link/). A modelled link was waited for, not carried.",
                tables=[_table(varied | _LINK_COLUMNS, _points(rows))],
            ),
            Section(title="Figures", figures=_shown(sweep_figures(sweep))),
            Section(title="Cells", tables=[_table(varied | _CELL_COLUMNS, rows)]),
            *(
                [
                    Section(
                        title="Composed, held against trained",
                        text="Cells that were also trained step by step on their links, by as many nodes as learn. "
                        "Every step's loss must be that which was learned off the link, or the check fails.",
                        tables=[_table(_CHECK_COLUMNS, record.checks)],
                    )
                ]
                if record.checks
                else []
            ),
            Section(
                title="Validity",
                text="" if failed else "No cell failed, and none is invalid.",
                tables=problems if failed else [],
            ),
            *([Section(title="Left out", tables=[_table(excluded, record.excluded)])] if record.excluded else []),
        ],
        environment=_environment(folder / "environment.json"),
        command=_text(folder / "command.txt"),
    )


def _of_commands(sweep: Sweep, folder: Path) -> Page:
    """What became of a user's own command at every point."""
    record, table = sweep.record, sweep.table
    states = ", ".join(f"{count} {state}" for state, count in record.states.items())
    ended = table[table["state"] == "done"]
    fastest, slowest = ended["wall_seconds"].min(), ended["wall_seconds"].max()
    verdict = [(f"It took {significant(fastest)} to {significant(slowest)} s.", False)] if len(ended) else []
    if bad := int((ended["exit_status"] != 0).sum()):
        verdict.append((f"{bad} of {len(ended)} cells ended with a status that is not 0.", True))
    return Page(
        title=record.title,
        about=f"{record.cells} cells ({states}) of a command",
        question=record.question,
        verdict=[
            *verdict,
            *[(note, True) for note in record.notes],
            *[(f"{counted(len(record.failed), 'cell')} failed (column why).", True)] * bool(record.failed),
        ],
        sections=[
            Section(title="Cells", text="Measured: wall time and bytes. said_…: by the command.", tables=[_data(table)])
        ],
        environment=_environment(folder / "environment.json"),
        command=_text(folder / "command.txt"),
    )


_LINK_COLUMNS: dict[str, Callable[[CellRow], str]] = {
    "link": lambda row: row.link or MISSING,
    "asked": lambda row: rate(row.rate_bps, digits=4),
    "measured": lambda row: rate(row.rate_measured_bps, digits=4),
    "off by": lambda row: (
        percent(row.rate_measured_bps / row.rate_bps - 1, signed=True)
        if row.rate_bps and row.rate_measured_bps
        else MISSING
    ),
    "one-way delay": lambda row: (
        f"{trimmed(1000 * row.one_way_delay_seconds)} ms" if row.one_way_delay_seconds else "0 ms"
    ),
}


_CHECK_COLUMNS: dict[str, Callable[[CheckRow], str]] = {
    "cell": lambda row: row.point,
    "arm": lambda row: row.arm,
    "seed": lambda row: str(row.seed),
    "nodes": lambda row: MISSING if row.nodes is None else str(row.nodes),
    "link": lambda row: row.link or MISSING,
    "steps": lambda row: str(row.steps),
    "seconds, trained": lambda row: significant(row.trained_seconds, 5),
    "seconds, composed": lambda row: significant(row.composed_seconds, 5),
    "difference": lambda row: percent(row.difference, signed=True),
    "state": lambda row: row.state,
    "why": lambda row: row.why or MISSING,
}


_FAILED_COLUMNS: dict[str, Callable[[CellRow | CheckRow], str]] = {
    "cell": lambda row: row.point,
    "arm": lambda row: row.arm,
    "trained": lambda row: f"{row.steps} steps" if isinstance(row, CheckRow) else "no",
    "state": lambda row: row.state,
    "why": lambda row: row.why or MISSING,
}


def _points(rows: list[CellRow]) -> list[CellRow]:
    """A row of each point: one of a link under test, where there is one."""
    found: dict[str, CellRow] = {}
    for row in sorted(rows, key=lambda row: row.link != "shaped"):
        if row.state == "done":
            found.setdefault(row.point, row)
    return list(found.values())


def _once(rows: list[CellRow | CheckRow]) -> list[CellRow | CheckRow]:
    """A row a cell."""
    return list({row.cell: row for row in reversed(rows)}.values())[::-1]


def _speedup(row: CellRow) -> str:
    if row.speedup is None:
        return MISSING
    return _with(row.speedup, row.speedup_half) if row.resolved else f"≈ 1 ± {significant(row.speedup_half, 1)}"


# -- what both share


def _shown(figures: dict[str, tuple[Callable[[], Figure], Callable[[], pd.DataFrame]]]) -> list[Shown]:
    return [
        Shown(name=name, svg=Markup(inline_svg(draw(), name, name.replace("_", " "))), table=_data(data()))
        for name, (draw, data) in figures.items()
    ]


def _data(table: pd.DataFrame) -> TableShown:
    rows = [[_Text(_plain(value)) for value in row] for row in table.head(_MOST_ROWS).itertuples(index=False)]
    return TableShown(
        columns=[str(name) for name in table.columns], rows=rows, left_out=max(0, len(table) - _MOST_ROWS)
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return MISSING if math.isnan(value) else significant(value, 5)
    return MISSING if value is None else str(value)


def _table(columns: Mapping[str, Callable[[T], str]], rows: Sequence[T]) -> TableShown:
    return TableShown(columns=list(columns), rows=[[_Text(text(row)) for text in columns.values()] for row in rows])


def _with(mean: float | None, half: float | None) -> str:
    text = significant(mean)
    return f"{text} ± {significant(half, 1)}" if half is not None and math.isfinite(half) else text


def _environment(file: Path) -> list[tuple[str, str]]:
    if not file.is_file():
        return []
    found = read_json(file)
    if not isinstance(found, dict):
        raise UsageError(f"{file} is no record of ours: it is damaged; remove it, and the report goes without it")
    dirty = found.pop("dirty_diff", "")
    packages = found.pop("packages", {})
    lines = [(key.replace("_", " "), str(value)) for key, value in found.items() if key != "schema_version"]
    lines.append(("uncommitted changes", f"{len(dirty.splitlines())} lines of diff" if dirty else "none"))
    return [*lines, ("packages", ", ".join(f"{name} {version}" for name, version in packages.items()))]


def _text(file: Path) -> str:
    return file.read_text(errors="replace").strip() if file.is_file() else "(not recorded)"
