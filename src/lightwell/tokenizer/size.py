"""How large a vocabulary to learn from a text."""

from __future__ import annotations

import math

SIZES = (8192, 4096, 2048, 1024, 512)
OF_A_MEGABYTE = 1024


def choose_vocab_size(text_bytes: int, seen_bytes: float | None = None) -> int:
    """A vocabulary for a text of which training sees so many bytes, repetitions included (None: all of it).

    Each token must be seen often enough, and in different places, to be learned: it grows with the root of the
    different text that is seen. Seen again, rare tokens are learned by heart (LOG.md).
    """
    different = text_bytes if seen_bytes is None else min(text_bytes, seen_bytes)
    wanted = OF_A_MEGABYTE * math.sqrt(different / 1e6)
    return min(SIZES, key=lambda size: abs(math.log2(size / max(1.0, wanted))))
