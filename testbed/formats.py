"""Numbers as people read them: three significant digits, never "0.00", hardly ever an exponent."""

import math
from typing import TypeGuard

__all__ = [
    "MISSING",
    "counted",
    "duration",
    "megabytes",
    "nats_above",
    "percent",
    "rate",
    "significant",
    "size",
    "trimmed",
    "usable",
]

MISSING = "–"


def usable(value: object) -> TypeGuard[float]:
    """Whether there is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def counted(number: int, thing: str) -> str:
    """ "1 cell", "2 cells"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def significant(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits, thousands in full."""
    if not usable(value):
        return MISSING
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    rounded = round(value, digits - 1 - exponent)
    exponent = math.floor(math.log10(abs(rounded)))  # 9.996 becomes 10.0, not 10.00
    if exponent < -6:
        return f"{value:.{digits - 1}e}"
    return f"{rounded:,.{max(0, digits - 1 - exponent)}f}"


def megabytes(count: float | None) -> str:
    """Bytes in MB; the few of a connection that carries nothing are no more than `< 0.001`."""
    return "< 0.001" if usable(count) and 0 < count < 1000 else significant(count / 1e6 if usable(count) else None)


def percent(fraction: float | None, *, signed: bool = False) -> str:
    """A fraction in per cent: 0.0351 is "3.51 %", a difference of 0.12 "+12 %"."""
    if not usable(fraction):
        return MISSING
    text = trimmed(100 * fraction, 3 if abs(fraction) >= 0.01 else 2)
    return f"{'+' if signed and fraction > 0 else ''}{text} %".replace("-", "−")


def nats_above(nats: float | None) -> str:
    """A difference of losses in nats: "+0.012"; "0.000" has no sign."""
    if not usable(nats):
        return MISSING
    return f"{nats:+.3f}".replace("-", "−") if round(nats, 3) else "0.000"


def rate(bps: float | None, *, digits: int = 3) -> str:
    """A rate in bits per second: "300 Mbit/s"."""
    return _scaled(bps, "bit/s", digits)


def size(count: float | None) -> str:
    """A number of bytes, decimal units: "72.3 MB"."""
    return _scaled(count, "B", 3)


def _scaled(value: float | None, unit: str, digits: int) -> str:
    if not usable(value):
        return MISSING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{trimmed(value / factor, digits)} {prefix}{unit}"
    return f"{trimmed(value, digits)} {unit}"


def trimmed(value: float, digits: int = 3) -> str:
    """`value` without trailing zeros: "1.5", "20"."""
    text = significant(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best: "4.31 h", "12.5 min", "62 s"."""
    if not usable(seconds):
        return MISSING
    for factor, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * factor:
            return f"{trimmed(seconds / factor, 3)} {unit}"
    return f"{trimmed(seconds, 3)} s"
