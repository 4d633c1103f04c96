"""Hashes of windows are equal where the windows are, wherever they stand."""

import numpy as np
import pytest

from lightwell.data import windows
from lightwell.data.windows import window_hashes


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_windows_have_equal_hashes_where_they_are_equal(monkeypatch, size, dtype):
    numbers = np.random.default_rng(1).integers(3, size=60).astype(dtype)
    whole = window_hashes(numbers, size)
    assert whole.shape == (61 - size,)
    known: dict[tuple[int, ...], int] = {}
    for begin, found in enumerate(whole.tolist()):
        assert known.setdefault(tuple(numbers[begin : begin + size].tolist()), found) == found
    assert len(set(known.values())) == len(known)
    monkeypatch.setattr(windows, "CHUNK", 5)
    assert np.array_equal(window_hashes(numbers, size), whole)


def test_there_is_no_window_in_less():
    assert window_hashes(np.arange(3), 4).shape == (0,)
    assert window_hashes(np.arange(0), 1).shape == (0,)
