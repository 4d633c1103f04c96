"""The colours of every picture, chosen once: readable on dark and light, and for people who see colours differently.

`SERIES` are from Okabe and Ito's set (2008), which keeps its differences under the common kinds of colour blindness.
`sequential` runs from dark to bright for values in 0..1, `diverging` from blue over grey to orange for -1..1; both are
monotone in brightness on each side, so that they also print in grey.
"""

from __future__ import annotations

import math

SERIES = ("#0096d6", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b5a900", "#8a8a8a")
FORWARD, BACKWARD, BAD = "#0096d6", "#d55e00", "#d1453b"

_SEQUENTIAL = ((24, 18, 60), (68, 47, 124), (42, 111, 151), (40, 165, 130), (142, 205, 84), (250, 231, 100))
_DIVERGING = ((28, 88, 180), (104, 156, 220), (222, 222, 222), (235, 150, 84), (188, 72, 8))
_NOT_FINITE = "#d000d0"


def sequential(value: float) -> str:
    """The colour `#rrggbb` of a value in 0..1; outside is clipped, and not a number has a colour of its own."""
    return _between(_SEQUENTIAL, value)


def diverging(value: float) -> str:
    """The colour `#rrggbb` of a value in -1..1: blue below, grey at zero, orange above."""
    return _between(_DIVERGING, (value + 1) / 2)


def text_on(background: str) -> str:
    """Black or white, whichever reads better on `background` (relative luminance of WCAG 2.1)."""
    red, green, blue = (_linear(int(background[start : start + 2], 16) / 255) for start in (1, 3, 5))
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def _between(stops: tuple[tuple[int, int, int], ...], value: float) -> str:
    if math.isnan(value):
        return _NOT_FINITE
    position = min(1.0, max(0.0, value)) * (len(stops) - 1)
    lower = min(int(position), len(stops) - 2)
    part = position - lower
    mixed = (round(a + (b - a) * part) for a, b in zip(stops[lower], stops[lower + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.03928 else ((channel + 0.055) / 1.055) ** 2.4
