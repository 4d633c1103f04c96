"""How large a vocabulary to learn from a text."""

from __future__ import annotations


def choose_vocab_size(text_bytes: int, seconds: float | None) -> int:
    """A vocabulary that the text and the time (None: as long as it takes) can fill: each token must be seen often
    enough to be learned (LOG.md)."""
    for size, enough_bytes, enough_seconds in ((8192, 1.6e7, 400), (4096, 1e6, 30), (2048, 2e5, 20), (1024, 5e4, 0)):
        if text_bytes >= enough_bytes and (seconds is None or seconds >= enough_seconds):
            return size
    return 512
