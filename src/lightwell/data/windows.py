"""Find equal passages fast: a number for each window of a sequence, equal for equal windows (Karp and Rabin 1987).

The hash of numbers c_0 ... c_{n-1} is the sum of (c_j + 1) * BASE**j modulo 2**64. Different windows hardly ever agree.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
INVERSE = pow(BASE, -1, 1 << 64)
# Windows hashed at once: arrays of this size stay in the processor's cache.
CHUNK = 1 << 16


def window_hashes(numbers: np.ndarray, size: int) -> np.ndarray:
    """The hash of each window of `size` of the numbers, integers of 0 and more: (n,) -> (n - size + 1,) uint64."""
    chunks = range(0, len(numbers) - size + 1, CHUNK)
    return np.concatenate(
        [np.empty(0, np.uint64), *(_hashes(numbers[begin : begin + CHUNK + size - 1], size) for begin in chunks)]
    )


def _hashes(numbers: np.ndarray, size: int) -> np.ndarray:
    """Differences of the sums from the beginning are the windows' hashes times BASE**position; multiplying by powers of
    the inverse takes that factor out. All modulo 2**64, which is how uint64 arrays compute."""
    sums = np.zeros(len(numbers) + 1, np.uint64)
    np.cumsum((numbers.astype(np.uint64) + np.uint64(1)) * _powers(BASE, len(numbers)), out=sums[1:])
    return (sums[size:] - sums[:-size]) * _powers(INVERSE, len(numbers) - size + 1)


@lru_cache(maxsize=4)
def _powers(base: int, n: int) -> np.ndarray:
    """base**0 ... base**(n-1) modulo 2**64: (n,) uint64."""
    powers = np.full(n, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)
