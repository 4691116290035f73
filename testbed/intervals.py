"""How well a mean or a sum of a few measured values is known: 95 % intervals by Student's t."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["known_within", "mean_interval", "sum_interval", "t_quantile"]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half its 95 % interval by Student's t, in the unit of `values`; infinite for one value."""
    if not len(values):
        raise ValueError("no values to take a mean of")
    known = np.asarray(values, dtype=float)
    if len(known) == 1:
        return float(known[0]), math.inf
    return float(known.mean()), t_quantile(len(known) - 1) * float(known.std(ddof=1)) / math.sqrt(len(known))


def sum_interval(alike: Sequence[Sequence[float]]) -> float | None:
    """Half of the 95 % interval of the sum of all values, of which those of a group are repetitions of one thing; None
    where no group holds two. Their pooled variance, by Student's t."""
    freedom = sum(len(group) - 1 for group in alike)
    if freedom < 1:
        return None
    squares = sum(float(np.square(np.asarray(group) - np.mean(group)).sum()) for group in alike)
    return t_quantile(freedom) * math.sqrt(squares / freedom * sum(len(group) for group in alike))


def known_within(values: Sequence[float], fraction: float) -> bool:
    """Whether at least 3 values give their mean within ± `fraction` of it (95 %)."""
    if len(values) < 3:
        return False
    mean, half = mean_interval(values)
    return half <= fraction * abs(mean)


def t_quantile(freedom: int, *, inside: float = 0.95) -> float:
    """t such that a Student variable of `freedom` degrees lies within ± t with probability `inside`."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # bisection in θ = atan(t / √ν)
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < inside else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _inside(angle: float, freedom: int) -> float:
    """A(t|ν), the probability of ± t, as a finite series (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series
