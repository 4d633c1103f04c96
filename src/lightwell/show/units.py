"""Numbers as people say them: 1.2 M, 3.4 GB, 2 min 10 s, 124,412,160.

Prefixes are decimal (1 kB = 1,000 bytes; SI Brochure, 9th edition). A value that is not finite stays visible as `nan`,
`inf` or `-inf`, and None, "not known", is `-`.
"""

from __future__ import annotations

import math
from typing import Any

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_SHORT = ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (0.9995, 1e3, "ms"))


def thousands(value: int | None) -> str:
    """An exact count with separators: 124412160 -> `124,412,160`."""
    return "-" if value is None else f"{value:,}"


def count(value: float | None) -> str:
    """A count, rounded: 950 -> `950`, 1234567 -> `1.2 M`, 163e6 -> `163 M`."""
    return _scaled(value, ("", " k", " M", " B", " T", " quadrillion"))


def size(n_bytes: float | None) -> str:
    """A number of bytes: 512 -> `512 B`, 3.4e9 -> `3.4 GB`."""
    return _scaled(n_bytes, (" B", " kB", " MB", " GB", " TB", " PB"))


def rate(value: float | None, unit: str) -> str:
    """Something per second: rate(12345, "tokens") -> `12.3 k tokens/s`."""
    return f"{count(value)} {unit}/s"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage: 0.0312 -> `3.1%`."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}%"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units: 0.0032 -> `3.2 ms`, 130 -> `2 min 10 s`, 7300 -> `2 h 2 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "-" if seconds is None else str(seconds)
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds == 0:
        return "0 s"
    for limit, per_second, unit in _SHORT:
        if seconds < limit:
            return f"{_three_digits(seconds * per_second)} {unit}"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return _two_units(whole, _MINUTE, "min", 1, "s")
    if whole < _DAY:
        return _two_units(whole, _HOUR, "h", _MINUTE, "min")
    return _two_units(whole, _DAY, "d", _HOUR, "h")


def number(value: float | int | None, digits: int = 4) -> str:
    """Any number with `digits` significant digits, short: 3.14159 -> `3.142`, 0.00001234 -> `1.234e-05`, 2.0 -> `2`.

    Whole numbers (int) are shown exactly, with separators.
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return thousands(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


def plural(n: int, noun: str, nouns: str = "") -> str:
    """A count with its noun: plural(1, "step") -> `1 step`, plural(2000, "step") -> `2,000 steps`."""
    return f"{n:,} {noun if n == 1 else nouns or noun + 's'}"


def _scaled(value: float | None, suffixes: tuple[str, ...]) -> str:
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    magnitude, power = abs(value), 0
    while magnitude >= 999.5 and power < len(suffixes) - 1:
        magnitude, power = magnitude / 1000, power + 1
    text = f"{value:g}" if power == 0 and value == int(value) else _three_digits(math.copysign(magnitude, value))
    return text + suffixes[power]


def _three_digits(value: float) -> str:
    """One decimal below a hundred, unless it is zero: 1.25 -> 1.2, 40.04 -> 40, 163.4 -> 163."""
    text = f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
    return text.removesuffix(".0")


def _two_units(whole: int, large: int, large_name: str, small: int, small_name: str) -> str:
    rest = whole % large // small
    return f"{whole // large} {large_name}" + (f" {rest} {small_name}" if rest else "")


def json_ready(data: Any) -> Any:
    """Nested plain data for JSON: a number that is not finite becomes None."""
    if isinstance(data, dict):
        return {key: json_ready(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [json_ready(item) for item in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
