"""Numbers as people say them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwell.show import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (4.2e-5, "42 µs"),
        (0.0032, "3.2 ms"),
        (0.9999, "1.0 s"),
        (3.25, "3.2 s"),
        (59.7, "1 min"),
        (130, "2 min 10 s"),
        (3599.9, "1 h"),
        (7300, "2 h 1 min"),
        (90000, "1 d 1 h"),
        (-5, "-5.0 s"),
        (math.inf, "inf"),
        (None, "-"),
    ],
)
def test_durations(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1 k"),
        (1234567, "1.2 M"),
        (163e6, "163 M"),
        (999_950, "1 M"),
        (-20_000, "-20 k"),
        (None, "-"),
        (math.nan, "nan"),
    ],
)
def test_counts(value, text):
    assert units.count(value) == text


def test_sizes_rates_and_the_rest():
    assert [units.size(n) for n in (512, 3.4e9, 999_999)] == ["512 B", "3.4 GB", "1 MB"]
    assert units.rate(12345, "tokens") == "12.3 k tokens/s"
    assert units.thousands(124412160) == "124,412,160"
    assert units.percent(0.0312) == "3.1%"
    assert units.plural(1, "step") == "1 step"
    assert units.plural(2000, "step") == "2,000 steps"
    assert units.plural(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.14159, "3.142"), (1.234e-5, "1.234e-05"), (2.0, "2"), (0.0, "0"), (math.nan, "nan"), (12345.678, "12,346")],
)
def test_numbers(value, text):
    assert units.number(value) == text


@given(st.floats(1e-290, 1e290), st.sampled_from([1, -1]))
def test_a_number_keeps_four_digits(magnitude, sign):
    value = magnitude * sign
    assert math.isclose(float(units.number(value).replace(",", "")), value, rel_tol=5.01e-4)


@given(st.floats(1e-8, 1e8))
def test_a_duration_is_near_what_was_measured(seconds):
    in_seconds = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
    words = units.duration(seconds).split()
    said = sum(float(n) * in_seconds[u] for n, u in zip(words[::2], words[1::2], strict=True))
    assert math.isclose(said, seconds, rel_tol=0.051)
