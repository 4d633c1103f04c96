"""Bars and sparklines for the terminal, drawn with Unicode's block elements in steps of an eighth of a cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from lightwell.show.colors import BACKWARD, FORWARD
from lightwell.show.terminal import one_line, pad, paint, shorten, visible_width
from lightwell.show.units import number

_LEVELS = "▁▂▃▄▅▆▇█"
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


def sparkline(values: Sequence[float], width: int | None = None) -> str:
    """One character per value, its height between the lowest and the highest; what is not finite is `×`.

    More values than `width` are averaged in equal groups, so that the line spans all of them.
    """
    if width is not None and len(values) > width:
        edges = [len(values) * k // width for k in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    drawable = [v for v in values if math.isfinite(v)]
    if not drawable:
        return "×" * len(values)
    low, high = min(drawable), max(drawable)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(_LEVELS[round((v - low) * scale)] if math.isfinite(v) else "×" for v in values)


def draw_bars(
    items: Mapping[str, float],
    width: int = 72,
    color: bool = False,
    text: Callable[[float], str] = number,
) -> str:
    """Horizontal bars, a line per item with its name and `text(value)`.

    Values below zero, if there are any, go left from a zero line. What is not finite has no bar but is said.
    """
    if not items:
        return ""
    said = {name: text(value) for name, value in items.items()}
    value_width = max(map(visible_width, said.values()))
    name_width = min(max(visible_width(one_line(name)) for name in items), max(8, width // 3))
    sizes = [v for v in items.values() if math.isfinite(v)]
    below, above = -min([0.0, *sizes]), max([0.0, *sizes])
    room = max(6, width - name_width - value_width - (5 if below else 4))
    total = below + above or 1.0
    left = min(room - 1, max(1, round(room * (below / total)))) if below else 0
    lines = []
    for name, value in items.items():
        drawn = _bar(room * (value / total) if math.isfinite(value) else 0.0, left, room - left, color)
        title = pad(shorten(one_line(name), name_width), name_width)
        lines.append(f"{title}  {drawn}  {pad(said[name], value_width, 'r')}")
    return "\n".join(lines)


def _bar(cells: float, left: int, right: int, color: bool) -> str:
    """One bar of so many cells. Left of zero they are whole: the partial blocks of Unicode all fill from the left."""
    zero = "│" if left else ""
    if cells < 0:
        length = min(left, max(1, round(-cells)))
        return " " * (left - length) + paint("▒" * length, BACKWARD, color) + zero + " " * right
    whole, eighths = divmod(min(8 * right, round(8 * cells)), 8)
    bar = "█" * whole + _EIGHTHS[eighths]
    if cells and not bar:
        bar = _EIGHTHS[1]  # something that is there is seen
    return " " * left + zero + paint(bar, FORWARD, color) + " " * (right - len(bar))
