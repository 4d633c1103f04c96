"""How large a vocabulary to learn from a text."""

from __future__ import annotations

import math

SIZES = (8192, 4096, 2048, 1024, 512)
OF_A_MEGABYTE = 1024  # of different text that is seen at least twice


def choose_vocab_size(text_bytes: int, seen_bytes: float | None = None) -> int:
    """A vocabulary for a text of which training sees so many bytes, repetitions included (None: all of it twice).

    Each token must be seen often enough to be learned, so it grows with the root of the text that is seen; and the
    rarer its tokens, the sooner repeated text is learned by heart: seen once, a text bears one twice as large (LOG.md).
    """
    seen = max(1.0, 2.0 * text_bytes if seen_bytes is None else seen_bytes)
    fresh = min(2.0, max(1.0, 2 * text_bytes / seen))
    wanted = OF_A_MEGABYTE * math.sqrt(min(text_bytes, seen) / 1e6) * fresh
    return min(SIZES, key=lambda size: abs(math.log2(size / max(1.0, wanted))))
