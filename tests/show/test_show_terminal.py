"""Colour, width, tables and curves in the terminal."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwell.show import terminal
from lightwell.show.axes import labels, log_ticks, ticks
from lightwell.show.curve import draw_curve
from lightwell.show.table import draw_table


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "wanted"),
    [
        (Tty(), {}, True),
        (io.StringIO(), {}, False),
        (Tty(), {"NO_COLOR": "1"}, False),
        (Tty(), {"NO_COLOR": ""}, True),
        (Tty(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (Tty(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(stream, environ, wanted):
    assert terminal.wants_color(stream, environ) is wanted


def test_width_counts_columns_not_characters():
    assert terminal.visible_width("日本") == 4
    assert terminal.visible_width("e\u0301") == 1
    assert terminal.visible_width(terminal.paint("abc", "bold #ff0000 on:#000000")) == 3
    assert terminal.plain(terminal.paint("abc", "dim")) == "abc"


@given(st.text(max_size=30), st.integers(1, 20))
def test_a_shortened_text_fits(text, width):
    shortened = terminal.shorten(text, width)
    assert terminal.visible_width(shortened) <= width
    assert shortened == text or shortened.endswith("…")


@given(st.text(max_size=30))
def test_one_line_is_one_line(text):
    assert len(terminal.one_line(text).splitlines()) <= 1
    assert "\x1b" not in terminal.one_line(text)


def test_table():
    drawn = draw_table([["a", 1.23456, 3], ["bb", None, 10_000]], ["name", "loss", "steps"])
    assert drawn.splitlines() == [
        "name   loss   steps",
        "────  ─────  ──────",
        "a     1.235       3",
        "bb        -  10,000",
    ]
    assert terminal.plain(draw_table([["a", 1]], ["name", "n"], color=True)) == draw_table([["a", 1]], ["name", "n"])
    assert draw_table([], ["a", "b"]).splitlines()[0] == "a  b"
    assert draw_table([]) == ""
    assert draw_table([["x", "y"]], ["long", "longer"], align="rl").splitlines()[2] == "   x  y"


def test_a_table_keeps_to_its_width_and_lines():
    drawn = draw_table([["x" * 50, "two\nlines"], ["日本語" * 9, 3]], ["a", "b"], width=30)
    assert len(drawn.splitlines()) == 4
    assert all(terminal.visible_width(line) <= 30 for line in drawn.splitlines())
    assert "…" in drawn
    assert "↵" in drawn


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_round_and_inside(low, length, wanted):
    found = ticks(low, low + length, wanted)
    assert wanted - 1 <= len(found) <= 3 * wanted
    assert all(low - 1e-6 * length <= t <= low + length * (1 + 1e-6) for t in found)
    assert len(set(labels(found))) == len(found)


def test_log_ticks_are_powers_of_ten():
    assert log_ticks(0.5, 2000, 4) == [1.0, 10.0, 100.0, 1000.0]
    assert log_ticks(2.1, 11, 4) == [5.0, 10.0]


def test_a_curve_has_axes_and_falls():
    drawn = draw_curve({"loss": [(i, 10 - i / 10) for i in range(101)]}, 40, 8, "step", "loss")
    lines = drawn.splitlines()
    assert lines[0] == "loss"
    assert lines[-1].endswith("step")
    assert all(terminal.visible_width(line) <= 40 for line in lines)
    plot = [line.split("│")[-1].split("┤")[-1] for line in lines[1:9]]
    starts = [len(row) - len(row.lstrip()) for row in plot]
    assert starts == sorted(starts)  # a falling line begins further right in each row
    assert starts[-1] > 25
    assert "10┤" in drawn


def dots_of(rows: list[str]) -> set[tuple[int, int]]:
    """The braille dots of a drawing as (column, row)."""
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]  # of bits 0 to 7
    return {
        (2 * c + dx, 4 * r + dy)
        for r, row in enumerate(rows)
        for c, character in enumerate(row)
        for bit, (dx, dy) in enumerate(places)
        if 0x2800 <= ord(character) <= 0x28FF and ord(character) >> bit & 1
    }


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=60))
def test_every_point_of_a_curve_is_where_it_belongs(values):
    low, high = min(values), max(values)
    if high - low < 1e-6:
        return
    drawn = draw_curve({"y": list(enumerate(values))}, 60, 8).splitlines()[:8]
    plot = [line[max(line.find("│"), line.find("┤")) + 1 :] for line in drawn]
    columns = 2 * (60 - len(drawn[0].split("│")[0].split("┤")[0]) - 1)
    dots = dots_of(plot)
    for x, y in enumerate(values):
        column = round(x / (len(values) - 1) * (columns - 1))
        assert (column, round((high - y) / (high - low) * 31)) in dots


def test_several_curves_differ_without_colour():
    series = {"a": [(0, 1.0), (10, 2.0)], "b": [(0, 2.0), (10, 1.0)], "same as b": [(0, 2.0), (10, 1.0)]}
    bare = draw_curve(series, 50, 8)
    assert {"o", "x", "+"} <= set("".join(bare.splitlines()[:8]))
    coloured = draw_curve(series, 50, 8, color=True)
    assert "\x1b[" in coloured
    assert "\x1b[" not in bare
    assert terminal.plain(coloured).splitlines()[-3:] == bare.splitlines()[-3:]  # the legend, with its marks


def test_what_cannot_be_drawn_is_said():
    series = {"a": [(0, 1.0), (1, math.nan), (2, 1.5)], "b": [(0, math.inf)]}
    drawn = draw_curve(series, 50, 6)
    assert "(1 not finite)" in drawn
    assert "inf (1 not finite)" in drawn
    assert draw_curve({}) == draw_curve({"a": []}) == draw_curve({"a": [(0, math.nan)]}) == "(no values to draw yet)"
    assert draw_curve({"a": [(5, 3.0)]}, 30, 5).count("\n") == 6


def test_a_gap_stays_a_gap():
    whole = dots_of(draw_curve({"a": [(i, float(i)) for i in range(11)]}, 40, 6).splitlines())
    parted = [(i, float(i) if i not in (5,) else math.nan) for i in range(11)]
    assert dots_of(draw_curve({"a": parted}, 40, 6).splitlines()) < whole


def test_log_axis():
    points = [(i, 10.0 ** (-i)) for i in range(7)]
    drawn = draw_curve({"a": points}, 40, 7, log_y=True)
    dots = sorted(dots_of([line[max(line.find("│"), line.find("┤")) + 1 :] for line in drawn.splitlines()[:7]]))
    slopes = {round((row - dots[0][1]) / max(1, column - dots[0][0]), 1) for column, row in dots[5:]}
    assert max(slopes) - min(slopes) <= 0.2  # exponential decay is a straight line
    assert draw_curve({"a": [(0, 0.0), (1, -1.0)]}, log_y=True) == "(no values to draw yet)"
