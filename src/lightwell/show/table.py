"""Tables for the terminal: columns as wide as what they hold, numbers to the right, cut to the width that is there."""

from __future__ import annotations

from collections.abc import Sequence

from lightwell.show.terminal import one_line, pad, paint, shorten, visible_width
from lightwell.show.units import number

_GAP = "  "


def draw_table(
    rows: Sequence[Sequence[object]],
    headers: Sequence[str] = (),
    align: str = "",
    color: bool = False,
    width: int | None = None,
) -> str:
    """`rows` as lines of text under `headers`.

    align: one of `l`, `r`, `c` per column; left out, columns of numbers go right and others left. None is `-`, a float
    is shown to four digits; give text for another form. width: columns to keep to, by cutting the widest first.
    """
    cells = [[cell_text(value) for value in row] for row in rows]
    n_columns = max((len(row) for row in [list(headers), *cells]), default=0)
    cells = [row + [""] * (n_columns - len(row)) for row in cells]
    titles = [one_line(title) for title in headers] + [""] * (n_columns - len(headers))
    align = align or "".join(_alignment(rows, column) for column in range(n_columns))
    widths = [max(map(visible_width, [titles[c], *(row[c] for row in cells)])) for c in range(n_columns)]
    if width is not None:
        _fit(widths, width)
    lines = [_line(row, widths, align) for row in cells]
    if any(titles):
        head = _line(titles, widths, align).rstrip()
        rule = _GAP.join("─" * w for w in widths)
        lines = [paint(head, "bold", color), paint(rule, "dim", color), *lines]
    return "\n".join(line.rstrip() for line in lines)


def cell_text(value: object) -> str:
    """How a table shows one value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, int | float):
        return number(value)
    text = str(value)
    return text if "\x1b" in text else one_line(text)


def _alignment(rows: Sequence[Sequence[object]], column: int) -> str:
    values = [row[column] for row in rows if column < len(row) and row[column] is not None]
    numeric = bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return "r" if numeric else "l"


def _fit(widths: list[int], width: int) -> None:
    """Takes columns from the widest until the line fits, leaving each at least four."""
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1


def _line(row: Sequence[str], widths: Sequence[int], align: str) -> str:
    return _GAP.join(pad(shorten(cell, w), w, a) for cell, w, a in zip(row, widths, align, strict=True))
