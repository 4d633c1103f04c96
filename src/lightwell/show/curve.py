"""Curves in the terminal, with axes: a loss over steps, several runs compared.

Lines are drawn in dots, two by four to a character cell (Unicode's braille block, U+2800). With colour each series has
its own; without, or beside it, its own mark (colour is never the only difference): o x + * ... as the legend says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from string import ascii_uppercase

from lightwell.show.axes import Points, finite, labels, last_values, log_ticks, span, ticks
from lightwell.show.colors import SERIES
from lightwell.show.terminal import one_line, pad, paint, shorten, visible_width

MARKS = "ox+*#@%&" + ascii_uppercase
_DOT_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row] within a braille cell
_NOTHING = "(no values to draw yet)"


def draw_curve(
    series: Mapping[str, Points],
    width: int = 72,
    height: int = 14,
    x_label: str = "",
    y_label: str = "",
    color: bool = False,
    log_y: bool = False,
) -> str:
    """`series` (name -> points (x, y), in order of x) as a drawing `width` columns wide with `height` rows of plot.

    Points that are not finite leave a gap and are counted in the legend. One series is drawn in dots; several have
    marks, or dots in colour with their mark at the last point. log_y: logarithmic y axis, without values <= 0.
    """
    drawable = {name: finite(points, log_y) for name, points in series.items()}
    if not any(drawable.values()):
        return _NOTHING
    x_low, x_high = span(x for points in drawable.values() for x, _ in points)
    y_low, y_high = span(y for points in drawable.values() for _, y in points)
    y_ticks = (log_ticks if log_y else ticks)(y_low, y_high, max(2, height // 5))
    y_labels = labels(y_ticks)
    margin = max(map(len, y_labels)) + 1
    canvas = _Canvas(max(10, width - margin - 1), max(3, height))

    to_column = _scale(x_low, x_high, canvas.dot_columns - 1)
    to_row = _scale(y_high, y_low, canvas.dot_rows - 1, log=log_y)
    for number, points in enumerate(series.values()):
        canvas.draw(number, [(to_column(x), to_row(y)) if finite([(x, y)], log_y) else None for x, y in points])

    many = len(series) > 1
    rows = canvas.rows(marks=many, color=color)
    named = {to_row(value) // 4: text for value, text in zip(y_ticks, y_labels, strict=True)}
    lines = [f"{named.get(r, ''):>{margin}}{'┤' if r in named else '│'}{row}" for r, row in enumerate(rows)]
    if y_label:
        lines.insert(0, one_line(y_label))
    lines += _x_axis(x_low, x_high, margin, canvas.columns, lambda x: to_column(x) // 2, x_label)
    return "\n".join([*lines, *_legend(series, margin, width, color)] if many else lines)


class _Canvas:
    """Dots of several series on a grid of cells, two dots wide and four high."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.dot_columns, self.dot_rows = columns, 2 * columns, 4 * rows
        self._cells: dict[tuple[int, int], dict[int, int]] = {}  # (row, column) -> series -> dots
        self._ends: dict[tuple[int, int], int] = {}  # the cell of a series' last point -> series

    def draw(self, number: int, dots: list[tuple[int, int] | None]) -> None:
        """Joins neighbouring dots (column, row); None is a gap."""
        before = None
        for dot in dots:
            for column, row in _segment(before or dot, dot) if dot else ():
                cell = self._cells.setdefault((row // 4, column // 2), {})
                cell[number] = cell.get(number, 0) | _DOT_BITS[column % 2][row % 4]
            before = dot
        last = next((dot for dot in reversed(dots) if dot), None)
        if last:
            self._ends[last[1] // 4, last[0] // 2] = number

    def rows(self, marks: bool, color: bool) -> Iterator[str]:
        for row in range(self.dot_rows // 4):
            cells = [self._cell(row, column, marks, color) for column in range(self.columns)]
            runs = groupby(cells, key=lambda cell: cell[1])
            yield "".join(paint("".join(text for text, _ in run), style, color) for style, run in runs).rstrip()

    def _cell(self, row: int, column: int, marks: bool, color: bool) -> tuple[str, str]:
        """The character of a cell and its style."""
        here = self._cells.get((row, column))
        if here is None:
            return " ", ""
        number = sorted(here)[column % len(here)]  # series that meet take turns, so that none hides another
        if marks and (row, column) in self._ends:
            number = self._ends[row, column]
            return mark(number), f"bold {series_color(number)}"
        if marks and not color:
            return mark(number), ""
        return chr(0x2800 + here[number]), series_color(number)


def mark(number: int) -> str:
    return MARKS[number % len(MARKS)]


def series_color(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _scale(low: float, high: float, steps: int, log: bool = False) -> Callable[[float], int]:
    """The function that takes low..high to 0..steps, clipped."""
    bend: Callable[[float], float] = math.log if log else float
    start, length = bend(low), bend(high) - bend(low)
    return lambda value: min(steps, max(0, round((bend(value) - start) / length * steps)))


def _segment(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots of a straight line, one for each column or row, whichever are more."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for k in range(steps + 1):
        yield (
            start[0] + round((end[0] - start[0]) * k / steps),
            start[1] + round((end[1] - start[1]) * k / steps),
        )


def _x_axis(
    low: float, high: float, margin: int, columns: int, column_of: Callable[[float], int], x_label: str
) -> list[str]:
    """The line with its ticks, then as many tick labels as find room, then the name of the axis at the right."""
    marks = ticks(low, high, max(2, columns // 25))
    line, names = ["─"] * columns, [" "] * columns
    free_from = 0
    for value, text in zip(marks, labels(marks), strict=True):
        column = column_of(value)
        line[column] = "┬"
        first = max(0, min(column - len(text) // 2, columns - len(text)))
        if first >= free_from:
            names[first : first + len(text)] = text
            free_from = first + len(text) + 2
    drawn = [" " * margin + "└" + "".join(line), " " * (margin + 1) + "".join(names).rstrip()]
    return [*drawn, pad(one_line(x_label), margin + 1 + columns, "r")] if x_label else drawn


def _legend(series: Mapping[str, Points], margin: int, width: int, color: bool) -> list[str]:
    last = last_values(series)
    room = max(8, width - margin - 6 - max(map(len, last.values())))
    names = {name: shorten(one_line(name), room) for name in series}
    wide = max(map(visible_width, names.values()))
    return [
        f"{' ' * (margin + 1)}{paint(mark(k), f'bold {series_color(k)}', color)} {pad(names[name], wide)}  {last[name]}"
        for k, name in enumerate(series)
    ]
