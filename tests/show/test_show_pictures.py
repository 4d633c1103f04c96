"""Bars, sparklines, heat maps; SVG and HTML."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwell.show import html
from lightwell.show.bars import draw_bars, sparkline
from lightwell.show.colors import diverging, sequential, text_on
from lightwell.show.heat import draw_heat, heat
from lightwell.show.svg import svg_bars, svg_curve, svg_heat, svg_sparkline
from lightwell.show.terminal import plain, visible_width

SVG = "{http://www.w3.org/2000/svg}"
WAVES = [[math.sin(i * j / 4) for j in range(12)] for i in range(6)]


def luminance(color: str) -> float:
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_sparkline_has_the_order_of_its_values():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, math.nan, 2]) == "▁×█"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([]) == ""
    assert sparkline(list(range(1000)), width=8) == "▁▂▃▄▅▆▇█"


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=5), st.floats(-1e5, 1e5), min_size=1, max_size=6))
def test_bars_are_as_long_as_their_values(items):
    lines = draw_bars(items, 60).splitlines()
    assert all(visible_width(line) <= 60 for line in lines)
    lengths = [line.count("█") + line.count("▒") for line in lines]
    longest = max(abs(v) for v in items.values())
    for value, length in zip(items.values(), lengths, strict=True):
        if longest:
            # two cells: rounding of this bar and of the zero line
            assert abs(length - max(lengths) * abs(value) / longest) <= 2
    assert draw_bars({}) == ""


def test_bars_say_what_they_cannot_draw():
    drawn = draw_bars({"a": 1.0, "b": math.nan}, 40)
    assert "nan" in drawn
    assert draw_bars({"a": -1.0, "b": 2.0}, 40, color=True) != draw_bars({"a": -1.0, "b": 2.0}, 40)
    assert plain(draw_bars({"a": -1.0, "b": 2.0}, 40, color=True)) == draw_bars({"a": -1.0, "b": 2.0}, 40)


def test_brightness_follows_the_value():
    assert [luminance(sequential(k / 50)) for k in range(51)] == sorted(
        luminance(sequential(k / 50)) for k in range(51)
    )
    upper = [luminance(diverging(k / 50)) for k in range(51)]
    lower = [luminance(diverging(-k / 50)) for k in range(51)]
    assert upper == sorted(upper, reverse=True)
    assert lower == sorted(lower, reverse=True)
    assert sequential(-3) == sequential(0)
    assert sequential(math.nan) not in {sequential(k / 50) for k in range(51)}
    assert text_on("#ffffff") == "#000000"
    assert text_on("#102030") == "#ffffff"


def test_a_heat_map_averages_what_does_not_fit():
    picture = heat([[r * 10 + c for c in range(10)] for r in range(4)], max_rows=2, max_columns=5)
    assert picture.block == (2, 2)
    assert picture.cells == [[5.5, 7.5, 9.5, 11.5, 13.5], [25.5, 27.5, 29.5, 31.5, 33.5]]
    assert "mean of 2 x 2" in picture.caption()
    assert heat([]).cells == []


def test_heat_without_colour_has_signs_and_shades():
    assert draw_heat([[-1.0, 0.0, 0.6, 1.0]]).splitlines()[0] == "-█   ▒ █"
    assert draw_heat([[0.0, 0.6, 1.0, math.nan]]).splitlines()[0] == "  ▒▒██××"
    assert "\x1b" not in draw_heat(WAVES)
    coloured = draw_heat(WAVES, color=True)
    assert len(set(re.findall(r"48;2;\d+;\d+;\d+", coloured))) > 20


def test_heat_has_names_and_numbers():
    drawn = draw_heat(WAVES, [f"r{i}" for i in range(6)], [str(i) for i in range(12)])
    assert drawn.splitlines()[0].split() == [str(i) for i in range(12)]
    assert drawn.splitlines()[3].startswith("r2 ")
    assert draw_heat([[0.25, -3.0]], numbers=True).splitlines()[0].split() == ["0.25", "-3"]
    assert all(visible_width(line) <= 30 for line in draw_heat(WAVES * 9, color=True, width=30).splitlines()[:-1])


def parsed(picture: str) -> ElementTree.Element:
    root = ElementTree.fromstring(picture)
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title") is not None
    return root


def test_svg_curve_draws_its_points_and_gaps():
    series = {"a <b>": [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5), (4, 1.0)], "c": [(0, 2.0), (4, 1.0)]}
    root = parsed(svg_curve(series, x_label="step", y_label="loss"))
    paths = [p.get("d") for p in root.iter(f"{SVG}path") if p.get("stroke-linejoin")]
    assert [p.count("M") for p in paths] == [2, 1]
    assert [p.count("L") for p in paths] == [2, 1]
    assert len({p.get("stroke-dasharray") for p in root.iter(f"{SVG}path") if p.get("stroke-linejoin")}) == 2
    assert any(text.text == "a <b>: 1 (1 not finite)" for text in root.iter(f"{SVG}text"))
    assert "no values" in svg_curve({"a": []})


def test_svg_bars_heat_and_sparkline():
    bars = parsed(svg_bars({"up": 3.0, "down": -1.0, "lost": math.inf}))
    widths = [float(r.get("width")) for r in bars.iter(f"{SVG}rect")]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)
    cells = list(parsed(svg_heat(WAVES, cell=30)).iter(f"{SVG}rect"))
    assert len(cells) == 72
    assert cells[13].find(f"{SVG}title").text == "[1, 1] 0.2474"
    assert parsed(svg_heat([[1.0, math.nan]])).find(f"{SVG}path") is not None
    assert parsed(svg_sparkline([1, 2, math.nan, 3])).find(f"{SVG}path").get("d").count("M") == 2
    assert parsed(svg_sparkline([])).find(f"{SVG}path") is None


def test_a_page_asks_nobody_for_anything():
    page = html.page("<Title>", "<p>body</p>", script="1")
    assert "&lt;Title&gt;" in page
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:https?:)?//\w", page.replace("http://www.w3.org/2000/svg", ""))
    assert "prefers-color-scheme: dark" in html.fragment("x")


def test_html_tables_escape():
    drawn = html.table([["<b>", 1.5, None]], ["a&b", "n", "m"], caption="c")
    assert "&lt;b&gt;" in drawn
    assert "a&amp;b" in drawn
    assert '<td class="num">1.5</td>' in drawn
    ElementTree.fromstring(drawn)
