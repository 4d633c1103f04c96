"""Axes: the span of the data, ticks at round numbers (1, 2 or 5 times a power of ten), and their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]
_SCALES = ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))


def finite(points: Points, log_y: bool = False) -> list[tuple[float, float]]:
    """The points that can be drawn: both numbers finite and, on a logarithmic axis, y above zero."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]


def span(values: Iterable[float]) -> tuple[float, float]:
    """(lowest, highest), widened around a single value so that there is something to divide by."""
    values = list(values)
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        margin = max(abs(low), abs(high)) / 2 or 0.5
        return low - margin, high + margin
    return low, high


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """`wanted` round numbers within [low, high], or up to three times as many."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(power * factor for factor in (1, 2, 5) if power * factor <= raw * 1.001)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers within [low, high], both above zero, for a logarithmic axis: powers of ten, or 1, 2, 5 if few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
        if len(found) >= 2:
            return found[:: max(1, len(found) // max(2, wanted))]
    return ticks(low, high, wanted) or [low, high]


def label(value: float, step: float) -> str:
    """A tick's label, with as many decimals as its neighbours at distance `step` need."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e12:
        return f"{value:.{max(0, _exponent(value) - _exponent(step))}e}"
    scale, suffix = next((s, name) for s, name in _SCALES if abs(value) >= 10 * s or s == 1)
    return f"{value / scale:.{max(0, -_exponent(step / scale))}f}{suffix}"


def labels(values: Sequence[float]) -> list[str]:
    """Labels for ticks, which may be evenly spaced or not."""
    gaps = [b - a for a, b in pairwise(values)]
    steps = [min(gaps[max(0, i - 1) : i + 1], default=abs(v) or 1.0) for i, v in enumerate(values)]
    return [label(v, s) for v, s in zip(values, steps, strict=True)]


def last_values(series: Mapping[str, Points]) -> dict[str, str]:
    """For a legend: each series' last y, and how many of its points are not finite, said rather than hidden."""
    found = {}
    for name, points in series.items():
        lost = sum(1 for x, y in points if not (math.isfinite(x) and math.isfinite(y)))
        last = f"{points[-1][1]:.4g}" if points else "no points"
        found[name] = last + (f" ({lost} not finite)" if lost else "")
    return found


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)) + 1e-9)
