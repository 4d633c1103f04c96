"""Does a sample repeat its training text? The longest passage of the sample that stands word for word in the corpus.

If a passage of n characters was copied, so was one of n - 1: the longest length is found by halving, and for each one
pass over the corpus asks whether any passage of the sample of that length is in it. A pass compares hashes of all
windows of the corpus with those of the sample (data/windows.py), in whole arrays; a match is then read character by
character, so the answer is exact and the hash decides about time only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightwell.data.windows import CHUNK, window_hashes

SAMPLE_TOKENS = 120  # of the sample that `pretrain` ends with
SEARCHED, PIECES = 6_000_000, 20  # tokens of a long text that `pretrain` searches, and in how many pieces
# Hashes are looked up first in a table by their top bits, which sorts out nearly all of them.
TABLE_BITS = 18
TABLE_SHIFT = np.uint64(64 - TABLE_BITS)


class Copy(NamedTuple):
    """The longest copy: its text, and its first character's place in the corpus (-1 when there is none)."""

    text: str
    where: int


def longest_copy(sample: str, text: str) -> Copy:
    """The longest substring of `sample` in `text`. Takes about a second for 12 million characters."""
    characters = _characters(text)
    where, low, high = -1, 0, len(sample)
    while low < high:
        middle = (low + high + 1) // 2
        found = _find_any(sample, middle, text, characters)
        if found < 0:
            high = middle - 1
        else:
            low, where = middle, found
    return Copy(text[where : where + low], where) if where >= 0 else Copy("", -1)


def _characters(text: str) -> np.ndarray:
    """The code points of `text`: (n,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _find_any(sample: str, size: int, text: str, characters: np.ndarray) -> int:
    """Which character of the text begins some `size` characters of the sample; -1 if there is none."""
    wanted = np.unique(window_hashes(_characters(sample), size))
    table = np.zeros(1 << TABLE_BITS, dtype=bool)
    table[wanted >> TABLE_SHIFT] = True
    for begin in range(0, len(text) - size + 1, CHUNK):
        hashes = window_hashes(characters[begin : begin + CHUNK + size - 1], size)
        likely = np.flatnonzero(table[hashes >> TABLE_SHIFT])
        for where in (begin + likely[np.isin(hashes[likely], wanted)]).tolist():
            if text[where : where + size] in sample:
                return where
    return -1
