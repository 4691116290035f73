"""Text with units to SI integers and back: the one place where either is parsed or written.

Inside the code there are only bit/s, microseconds, bytes, fractions and seconds. Rates follow tc(8), whose
`mbps` means mega*bytes* per second while most people mean mega*bits*: what can be read two ways is refused,
naming both.
"""

import re
import warnings
from collections.abc import Mapping
from fractions import Fraction

from emulation.errors import UsageError

__all__ = [
    "Rounded",
    "format_delay",
    "format_duration",
    "format_percent",
    "format_rate",
    "format_size",
    "parse_delay",
    "parse_duration",
    "parse_percent",
    "parse_rate",
    "parse_size",
]

RATES: Mapping[str, int] = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
DELAYS: Mapping[str, int] = {"us": 1, "ms": 10**3, "s": 10**6}
SIZES: Mapping[str, int] = {
    "B": 1,
    "kB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
}
DURATIONS: Mapping[str, int] = {"s": 1, "min": 60, "h": 3600}

LARGEST_RATE_BPS = 10**12
LARGEST_DELAY_US = 60 * 10**6
LARGEST_SIZE_BYTES = 2**50
LARGEST_DURATION_SECONDS = 10**8

_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?|\.[0-9]{1,15})\s*(\S*)")


def _split(text: str, what: str, example: str) -> tuple[Fraction, str]:
    """The number and the unit of `text`; the number exact, so that nothing is lost before rounding."""
    match = _NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise UsageError(f"{what} {text!r} is not a plain number with a unit; type for example {example}.")
    return Fraction(match[1]), match[2]


def _unit(table: Mapping[str, int], unit: str, text: str, what: str, example: str) -> int:
    """The factor of `unit`, looked up exactly, or a sentence that lists what is allowed."""
    if not unit:
        raise UsageError(f"{what} {text!r} has no unit; type for example {example}.")
    if unit not in table:
        allowed = ", ".join(table)
        raise UsageError(f"{what} {text!r} has the unknown unit {unit!r}; allowed: {allowed}; e.g. {example}.")
    return table[unit]


def _whole(value: Fraction, unit_name: str, text: str, what: str, example: str) -> int:
    """`value` as an integer of the smallest unit; finer fractions are refused instead of rounded away."""
    if value.denominator != 1:
        raise UsageError(f"{what} {text!r} is finer than one {unit_name}; type for example {example}.")
    return value.numerator


def _format(value: int, table: Mapping[str, int]) -> str:
    """`value` in the largest unit that needs at most three decimals and still parses back exactly."""
    for unit, factor in sorted(table.items(), key=lambda item: -item[1]):
        scaled = Fraction(value, factor)
        if value >= factor and (scaled * 1000).denominator == 1:
            return (
                f"{float(scaled):.3f}".rstrip("0").rstrip(".") + unit if scaled.denominator > 1 else f"{scaled}{unit}"
            )
    return f"{value}{next(iter(table))}"


def parse_rate(text: str) -> int:
    """A link's rate in bit/s: "300mbit" is 300_000_000. Zero is refused: no rate at all is "unshaped", not
    0."""
    number, unit = _split(text, "rate", "300mbit")
    folded = unit.lower()
    for letter, word in (("k", "kilo"), ("m", "mega"), ("g", "giga"), ("", "")):
        if folded in (f"{letter}bps", f"{letter}b", f"{letter}b/s") and folded:
            raise UsageError(
                f"rate {text!r} can mean {word}bits or {word}bytes per second; "
                f"type {float(number):g}{letter}bit for bits, or {float(number * 8):g}{letter}bit for bytes."
            )
    rate = _whole(number * _unit(RATES, folded, text, "rate", "300mbit"), "bit/s", text, "rate", "300mbit")
    if not 0 < rate <= LARGEST_RATE_BPS:
        raise UsageError(f"rate {text!r} is outside 1bit to {format_rate(LARGEST_RATE_BPS)}; type for example 300mbit.")
    return rate


def format_rate(rate_bps: int) -> str:
    """300_000_000 bit/s as "300mbit"; `parse_rate` reads it back to the same integer."""
    return _format(rate_bps, RATES)


class Rounded(UserWarning):
    """What was given is finer than what can be set."""


def parse_delay(text: str) -> int:
    """A one-way delay in microseconds: "20ms" is 20_000. What is finer is rounded, with a warning (`Rounded`)."""
    number, unit = _split(text, "delay", "20ms")
    exact = number * _unit(DELAYS, unit, text, "delay", "20ms")
    delay = round(exact)
    if delay != exact:
        if not delay:
            raise UsageError(f"delay {text!r} is finer than one us; type for example 20ms.")
        said = f"delay {text} is set as {format_delay(delay)}: delays are whole microseconds."
        warnings.warn(said, Rounded, stacklevel=2)
    if delay > LARGEST_DELAY_US:
        raise UsageError(f"delay {text!r} is above {format_delay(LARGEST_DELAY_US)}; type for example 20ms.")
    return delay


def format_delay(delay_us: int) -> str:
    """20_000 µs as "20ms"."""
    return _format(delay_us, DELAYS)


def parse_size(text: str) -> int:
    """A size in bytes: "64KiB" is 65_536, "64kB" is 64_000; "64kb" could be either, or bits, and is
    refused."""
    number, unit = _split(text, "size", "64KiB")
    if unit in ("kb", "Kb", "KB", "mb", "Mb", "gb", "Gb", "k", "K", "m", "M", "g", "G", "b"):
        letter = unit[0].upper() if unit != "b" else ""
        decimal, binary = ("k" if letter == "K" else letter) + "B", f"{letter}iB" if letter else "B"
        raise UsageError(
            f"size {text!r} can mean bits or bytes, in thousands or in 1024s; "
            f"type {float(number):g}{decimal} or {float(number):g}{binary}."
        )
    size = _whole(number * _unit(SIZES, unit, text, "size", "64KiB"), "byte", text, "size", "64KiB")
    if size > LARGEST_SIZE_BYTES:
        raise UsageError(f"size {text!r} is above {format_size(LARGEST_SIZE_BYTES)}; type for example 64KiB.")
    return size


def format_size(size_bytes: int) -> str:
    """65_536 bytes as "64KiB"; a size that is round in neither thousands nor 1024s stays in smaller units."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes >= SIZES[unit] and size_bytes % SIZES[unit] == 0:
            return f"{size_bytes // SIZES[unit]}{unit}"
    return _format(size_bytes, {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9})


def parse_percent(text: str) -> float:
    """A loss as a fraction: "1%" is 0.01. Only 0% to 100%."""
    number, unit = _split(text, "percentage", "1%")
    if unit != "%":
        raise UsageError(f"percentage {text!r} must end in %; type for example 1%.")
    if number > 100:
        raise UsageError(f"percentage {text!r} is above 100%; type for example 1%.")
    return float(number / 100)


def format_percent(fraction: float) -> str:
    """0.01 as "1%"."""
    return f"{fraction * 100:.12f}".rstrip("0").rstrip(".") + "%"


def parse_duration(text: str) -> float:
    """A length of time in seconds: "10min" is 600.0."""
    number, unit = _split(text, "duration", "10min")
    seconds = number * _unit(DURATIONS, unit, text, "duration", "10min")
    if not 0 < seconds <= LARGEST_DURATION_SECONDS:
        raise UsageError(f"duration {text!r} must be above 0s and at most {LARGEST_DURATION_SECONDS}s; e.g. 10min.")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """600.0 s as "10min"; finer than a millisecond is rounded."""
    whole = round(seconds)
    if abs(seconds - whole) < 1e-9:
        for unit in ("h", "min"):
            if whole and whole % DURATIONS[unit] == 0:
                return f"{whole // DURATIONS[unit]}{unit}"
        return f"{whole}s"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
