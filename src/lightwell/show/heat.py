"""Heat maps: a matrix as cells of colour, and as signs and shades where there is no colour.

`Heat` is the picture before it is drawn: shrunk to the cells that there is room for, with its scale. The drawings for
terminal (`draw_heat`) and SVG (`svg.svg_heat`) share it, so that they cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightwell.show.colors import diverging, sequential, text_on
from lightwell.show.terminal import one_line, pad, paint, shorten, visible_width
from lightwell.show.units import number

_SHADES = " ·░▒▓█"


@dataclass(frozen=True)
class Heat:
    """A matrix made ready. `block`: how many rows and columns are averaged in one cell, (1, 1) for none.

    A matrix with numbers of both signs is scaled by its largest size, so that zero is in the middle (`signed`).
    """

    cells: list[list[float]]
    low: float
    high: float
    signed: bool
    block: tuple[int, int]

    def color(self, value: float) -> str:
        return diverging(value / self.high) if self.signed else sequential(self._place(value))

    def shade(self, value: float) -> str:
        """Two characters that say the same as the colour: sign and size."""
        if not math.isfinite(value):
            return "××" if math.isnan(value) else "∞∞"
        if not self.signed:
            return _SHADES[round(self._place(value) * (len(_SHADES) - 1))] * 2
        size = _SHADES[round(min(1.0, abs(value) / self.high) * (len(_SHADES) - 1))]
        return ("-" if value < 0 and size != " " else " ") + size

    def caption(self) -> str:
        said = f"{number(self.low)} to {number(self.high)}"
        if self.block != (1, 1):
            said += f"; each cell is the mean of {self.block[0]} x {self.block[1]} values"
        return said

    def _place(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0


def heat(
    matrix: Sequence[Sequence[float]], max_rows: int = 32, max_columns: int = 64, signed: bool | None = None
) -> Heat:
    """Makes a matrix (rows of equal length) ready to be drawn. signed: None means, if a value is below zero."""
    n_rows, n_columns = len(matrix), max((len(row) for row in matrix), default=0)
    block = -(-n_rows // max_rows) or 1, -(-n_columns // max_columns) or 1
    cells = [[_mean(matrix, r, c, block) for c in range(0, n_columns, block[1])] for r in range(0, n_rows, block[0])]
    numbers = [v for row in cells for v in row if math.isfinite(v)]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    if signed is None:
        signed = low < 0
    if signed:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    return Heat(cells, low, high, signed, block)


def draw_heat(
    matrix: Sequence[Sequence[float]],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    color: bool = False,
    numbers: bool = False,
    width: int = 80,
    max_rows: int = 32,
    signed: bool | None = None,
) -> str:
    """A matrix for the terminal, a cell as wide as its number with `numbers=True`, else its column's name, else two.

    Names are shown where no rows or columns had to be averaged to fit.
    """
    gutter = max((visible_width(one_line(name)) for name in row_names), default=0)
    gutter = min(gutter, width // 3) + 1 if gutter else 0
    texts = [[number(v, 2) for v in row] for row in matrix] if numbers else []
    written = [t for row in texts for t in row] + [one_line(name) for name in column_names]
    cell_width = max(map(visible_width, written), default=1) + 1
    if column_names and not numbers and gutter + len(column_names) * cell_width > width:
        cell_width = 2
    picture = heat(matrix, max_rows, max(1, (width - gutter) // cell_width), signed)
    lines = []
    if column_names and picture.block[1] == 1:
        heads = [pad(shorten(one_line(name), cell_width - 1), cell_width) for name in column_names]
        lines.append((" " * gutter + "".join(heads)).rstrip())
    for r, row in enumerate(picture.cells):
        name = row_names[r] if row_names and picture.block[0] == 1 else ""
        head = pad(shorten(one_line(name), gutter - 1), gutter) if gutter else ""
        lines.append(head + "".join(_cell(picture, v, cell_width, numbers, color) for v in row))
    return "\n".join([*lines, paint(picture.caption(), "dim", color)])


def _cell(picture: Heat, value: float, width: int, numbers: bool, color: bool) -> str:
    background = picture.color(value)
    text = number(value, 2) if numbers else picture.shade(value)
    if color and not numbers and math.isfinite(value):
        text = ""
    return paint(pad(text, width), f"{text_on(background)} on:{background}", color)


def _mean(matrix: Sequence[Sequence[float]], row: int, column: int, block: tuple[int, int]) -> float:
    values = [v for line in matrix[row : row + block[0]] for v in line[column : column + block[1]]]
    return sum(values) / len(values)
