"""Curves, bars, sparklines and heat maps as SVG: text that any browser draws, the same numbers as in the terminal.

Each picture is an image with a title for those who do not see it; lines differ by dashes as well as by colour, and text
takes the colour of the page around it (`currentColor`). Coordinates are rounded to a tenth of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from lightwell.show.axes import Points, finite, labels, last_values, log_ticks, span, ticks
from lightwell.show.colors import BACKWARD, FORWARD, SERIES, text_on
from lightwell.show.heat import heat
from lightwell.show.units import number

_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "12 4", "4 2 1 2 1 2", "10 2 2 2")
_MARGIN_LEFT, _MARGIN_TOP, _MARGIN_BOTTOM = 58, 20, 38


def svg(title: str, width: float, height: float, body: str) -> str:
    """A picture of `width` x `height` pixels around `body`."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="system-ui, sans-serif" font-size="11" fill="currentColor">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def svg_curve(
    series: Mapping[str, Points],
    width: int = 640,
    height: int = 280,
    x_label: str = "",
    y_label: str = "",
    title: str = "",
    log_y: bool = False,
) -> str:
    """`series` (name -> points (x, y), in order of x) as lines with axes; points that are not finite leave a gap."""
    title = title or f"{y_label or 'curve'}: {', '.join(series)}"
    drawable = [point for points in series.values() for point in finite(points, log_y)]
    if not drawable:
        return svg(title, width, 40, _text(8, 24, "no values to draw yet"))
    x_low, x_high = span(x for x, _ in drawable)
    y_low, y_high = span(y for _, y in drawable)
    bend = math.log if log_y else float
    legend_height = 16 * len(series) if len(series) > 1 else 0
    right, bottom = width - 12, height - _MARGIN_BOTTOM - legend_height

    def x_at(x: float) -> float:
        return _MARGIN_LEFT + (x - x_low) / (x_high - x_low) * (right - _MARGIN_LEFT)

    def y_at(y: float) -> float:
        return bottom - (bend(y) - bend(y_low)) / (bend(y_high) - bend(y_low)) * (bottom - _MARGIN_TOP)

    parts = []
    y_ticks = (log_ticks if log_y else ticks)(y_low, y_high, 4)
    for value, text in zip(y_ticks, labels(y_ticks), strict=True):
        parts.append(_line(_MARGIN_LEFT, y_at(value), right, y_at(value), 0.15))
        parts.append(_text(_MARGIN_LEFT - 6, y_at(value) + 4, text, "end"))
    x_ticks = ticks(x_low, x_high, max(2, width // 200))
    for value, text in zip(x_ticks, labels(x_ticks), strict=True):
        parts.append(_line(x_at(value), bottom, x_at(value), bottom + 4, 0.6))
        parts.append(_text(x_at(value), bottom + 16, text, "middle"))
    parts.append(_line(_MARGIN_LEFT, bottom, right, bottom, 0.6))
    parts += [_text(8, 12, y_label), _text(right, bottom + 32, x_label, "end")]
    last = last_values(series)
    for k, (name, points) in enumerate(series.items()):
        stroke = f'stroke="{SERIES[k % 8]}" stroke-width="1.6" stroke-dasharray="{_DASHES[k % 8]}"'
        path = _path([(x_at(x), y_at(y)) if finite([(x, y)], log_y) else None for x, y in points])
        parts.append(f'<path d="{path}" fill="none" stroke-linejoin="round" {stroke}/>')
        if legend_height:
            y = height - legend_height + 16 * k + 8
            parts.append(f'<path d="M{_MARGIN_LEFT} {y}h34" fill="none" {stroke}/>')
            parts.append(_text(_MARGIN_LEFT + 42, y + 4, f"{name}: {last[name]}"))
    return svg(title, width, height, "".join(parts))


def svg_bars(items: Mapping[str, float], width: int = 640, title: str = "") -> str:
    """Horizontal bars, a line per item; what is below zero goes left and is hollow."""
    sizes = [v for v in items.values() if math.isfinite(v)]
    below, above = -min([0.0, *sizes]), max([0.0, *sizes])
    first, last = 150.0, width - 70.0
    per_unit = (last - first) / ((below + above) or 1.0)
    zero, parts = first + below * per_unit, []
    for k, (name, value) in enumerate(items.items()):
        y = 20 * k + 4
        parts += [_text(first - 8, y + 11, name, "end"), _text(width - 4, y + 11, number(value), "end")]
        if math.isfinite(value):
            x, length = min(zero, zero + value * per_unit), abs(value) * per_unit
            look = f'fill="{FORWARD}"' if value >= 0 else f'fill="none" stroke="{BACKWARD}"'
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="14" {look}/>')
    height = 20 * len(items) + 8
    return svg(title or f"bars: {', '.join(items)}", width, height, "".join(parts) + _line(zero, 0, zero, height, 0.6))


def svg_sparkline(values: Sequence[float], width: int = 120, height: int = 22, title: str = "") -> str:
    """A small line without axes."""
    points = finite(list(enumerate(values)))
    if not points:
        return svg(title or "no values", width, height, "")
    low, high = span(y for _, y in points)
    step = (width - 4) / max(1, len(values) - 1)

    def at(k: int, y: float) -> tuple[float, float] | None:
        return (2 + k * step, height - 2 - (y - low) / (high - low) * (height - 4)) if math.isfinite(y) else None

    path = _path([at(k, y) for k, y in enumerate(values)])
    said = title or f"{len(values)} values from {number(low)} to {number(high)}"
    return svg(said, width, height, f'<path d="{path}" fill="none" stroke="{FORWARD}" stroke-width="1.4"/>')


def svg_heat(
    matrix: Sequence[Sequence[float]],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "heat map",
    cell: int = 16,
    max_rows: int = 64,
    max_columns: int = 64,
    signed: bool | None = None,
) -> str:
    """A matrix as coloured cells; each says its place and value when pointed at, and is crossed out if not finite.

    Cells of 28 pixels and more show their number.
    """
    picture = heat(matrix, max_rows, max_columns, signed)
    named_rows = row_names if picture.block[0] == 1 else ()
    named_columns = column_names if picture.block[1] == 1 else ()
    left = 7 * max(map(len, named_rows), default=0) + 6 if named_rows else 2
    top = 16 if named_columns else 2
    parts = [_text(left + (c + 0.5) * cell, 11, name, "middle") for c, name in enumerate(named_columns)]
    for r, row in enumerate(picture.cells):
        y = top + r * cell
        if named_rows:
            parts.append(_text(left - 4, y + cell / 2 + 4, named_rows[r], "end"))
        for c, value in enumerate(row):
            x, fill = left + c * cell, picture.color(value)
            place = ", ".join(
                f"{k * block}" if block == 1 else f"{k * block}-{(k + 1) * block - 1}"
                for k, block in zip((r, c), picture.block, strict=True)
            )
            said = f"<title>[{place}] {number(value)}</title>"
            parts.append(f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{fill}">{said}</rect>')
            if not math.isfinite(value):
                parts.append(f'<path d="M{x} {y}l{cell} {cell}m0 {-cell}l{-cell} {cell}" stroke="#fff"/>')
            elif cell >= 28:
                color = f'fill="{text_on(fill)}"'
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, number(value, 2), "middle", color))
    bottom = top + cell * len(picture.cells)
    parts.append(_text(left, bottom + 14, picture.caption()))
    width = max(left + cell * max(map(len, picture.cells), default=0) + 2, left + 7 * len(picture.caption()))
    return svg(title, width, bottom + 20, "".join(parts))


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Moves and lines through the points; None lifts the pen. A point alone is drawn as a dot's width."""
    parts, down = [], False
    for k, point in enumerate(points):
        if point is None:
            down = False
            continue
        parts.append(f"{'L' if down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        alone = not down and (k + 1 == len(points) or points[k + 1] is None)
        parts += ["h1"] if alone else []
        down = True
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, opacity: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="currentColor" stroke-opacity="{opacity}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>' if text else ""
