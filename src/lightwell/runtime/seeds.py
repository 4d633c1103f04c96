"""Random streams: every random number of a run is a function of (seed, its use, step), never of what came before.

Folding a name or a number into a seed gives a new, independent seed, so that step n needs no state of steps before it
(as `fold_in` does in JAX's PRNG design).
"""

from __future__ import annotations

import hashlib

import torch


def fold(seed: int, *stream: int | str) -> int:
    """A seed for one stream, e.g. `fold(1337, "dropout", step)`; 0 <= result < 2**31.

    31 bits, since PyTorch's CPU generator ignores the upper half of a 64-bit seed.
    """
    text = "/".join([str(seed), *map(str, stream)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator for one stream."""
    return torch.Generator().manual_seed(fold(seed, *stream))
