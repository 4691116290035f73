"""A link's settings as texts with units, as schedules and presets write them, and what they do to a `Link`.

    bw, down, delay, jitter, distribution, loss, loss_burst, reorder, queue

Two settings imply others, for a link cannot have the one without the other: a delay of 0 also ends jitter and
reordering, and a loss of 0 also ends its runs.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, cast

from emulation.errors import UsageError
from emulation.spec.network import Link, LinkSettings
from emulation.spec.units import (
    SIZES,
    format_delay,
    format_percent,
    format_rate,
    format_size,
    parse_delay,
    parse_percent,
    parse_rate,
    parse_size,
)

__all__ = [
    "LINK_FIELDS",
    "SETTINGS",
    "alter",
    "parse_settings",
    "refuse_unknown",
    "settings_of",
    "settings_text",
    "with_implied",
]

LINK_FIELDS = tuple(field.name for field in fields(Link))


def _distribution(value: Any) -> str:
    if value not in ("normal", "uniform", "pareto"):
        raise UsageError(f"{value!r} is no distribution; type normal, uniform or pareto.")
    return value


def _packets(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{value!r} is no number of packets; type a plain number, for example 3.")
    return float(value)


def _queue(value: Any) -> tuple[str, int]:
    """A size or a time, told apart by the unit."""
    if isinstance(value, str) and value.strip().endswith(tuple(SIZES)):
        return "queue_bytes", parse_size(value)
    if isinstance(value, str) and value.strip().endswith("s"):
        return "queue_us", parse_delay(value)
    raise UsageError(f"{value!r} is neither a size nor a time; type for example 500kB or 40ms.")


_PARSERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "bw": ("rate_bps", parse_rate),
    "down": ("rate_down_bps", parse_rate),
    "delay": ("delay_us", parse_delay),
    "jitter": ("jitter_us", parse_delay),
    "distribution": ("distribution", _distribution),
    "loss": ("loss", parse_percent),
    "loss_burst": ("loss_burst", _packets),
    "reorder": ("reorder", parse_percent),
}

SETTINGS = (*_PARSERS, "queue")
"""Every setting's name."""


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise `UsageError` with the first name that is not known, and the nearest that is."""
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UsageError(f"{where}: unknown key {name!r}; allowed are {', '.join(known)}{hint}")


def parse_settings(texts: Mapping[str, Any], where: str, rate_name: str = "bw") -> LinkSettings:
    """Fields of `Link` from texts ("delay" = "20ms" is `delay_us` = 20_000); `where` begins each error.

    `rate_name` is what the texts call `bw`.
    """
    refuse_unknown(texts, [rate_name if name == "bw" else name for name in SETTINGS], where)
    found: dict[str, float | str | None] = {}
    for name, text in texts.items():
        try:
            if name == "queue":
                field, value = _queue(text)
            else:
                field, parser = _PARSERS["bw" if name == rate_name else name]
                value = parser(text)
        except UsageError as error:
            raise UsageError(f"{where}: {name}: {error}") from None
        found[field] = value
    return settings_of(found)


def settings_of(fields_and_values: Mapping[str, float | str | None]) -> LinkSettings:
    """As settings; the caller has checked that they are fields of `Link`, and their values."""
    return cast(LinkSettings, dict(fields_and_values))


def with_implied(settings: LinkSettings) -> LinkSettings:
    """The fields given and those that they imply."""
    implied: LinkSettings = {}
    if settings.get("delay_us") == 0:
        implied |= {"jitter_us": 0, "reorder": 0.0}
    if settings.get("loss") == 0:
        implied |= {"loss_burst": None}
    if "queue_bytes" in settings:
        implied |= {"queue_us": None}
    if "queue_us" in settings:
        implied |= {"queue_bytes": None}
    return {**implied, **settings}


def alter(link: Link, settings: LinkSettings) -> Link:
    """`link` with these fields instead; a rate up alone leaves a rate down of its own as it is."""
    return replace(link, **with_implied(settings))


def settings_text(settings: LinkSettings) -> str:
    """Fields of `Link` for people: "bw 10mbit, delay 20ms"."""
    show: Mapping[str, tuple[str, Callable[[Any], str]]] = {
        "rate_bps": ("bw", format_rate),
        "rate_down_bps": ("down", format_rate),
        "delay_us": ("delay", format_delay),
        "jitter_us": ("jitter", format_delay),
        "distribution": ("distribution", str),
        "loss": ("loss", format_percent),
        "loss_burst": ("loss_burst", "{:g}".format),
        "reorder": ("reorder", format_percent),
        "queue_bytes": ("queue", format_size),
        "queue_us": ("queue", format_delay),
    }
    parts = []
    for field, value in settings.items():
        name, text = show[field]
        parts.append(f"{name} {'none' if value is None else text(value)}")
    return ", ".join(parts)
