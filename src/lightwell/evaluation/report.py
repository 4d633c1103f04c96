"""What an evaluation found: loss, perplexity and bits per byte of one text under one model, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# The least bytes of text in one block of which the standard error is computed: tokens that stand close together are
# alike, so that single tokens would make the error look far smaller than it is.
BLOCK_BYTES = 4096

UNITS = {
    "loss": "nats per token",
    "perplexity": "tokens equally likely",
    "bits_per_byte": "bits per byte of text",
    "standard_error": "bits per byte of text",
    "tokens": "tokens predicted",
    "bytes": "bytes of text",
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one text. `UNITS` gives their units, `loss.py` their definition."""

    loss: float
    bits_per_byte: float
    standard_error: float | None
    """Of bits_per_byte, over blocks of at least 4 kB; None when the text has fewer than two."""
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many equally likely tokens the model would be as uncertain (Jelinek et al. 1977)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON has them (None for what is not finite), and `units` for each."""
        figures = {name: getattr(self, name) for name in UNITS}
        finite = {name: x if x is not None and math.isfinite(x) else None for name, x in figures.items()}
        return finite | {"units": dict(UNITS)}

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        return (
            f"{self.bits_per_byte:.4f}{error} bits per byte, loss {self.loss:.4f} nats per token, "
            f"perplexity {self.perplexity:.4g} ({self.tokens:,} tokens, {self.bytes:,} bytes)"
        )


class Window(NamedTuple):
    """What one window of a text adds: the sum of its losses in nats, its tokens, its size in bytes of text."""

    loss: float
    tokens: int
    size: float


def summarise(windows: Sequence[Window]) -> Evaluation:
    """The evaluation of a text from its windows, in order.

    Bits per byte is a ratio of two sums over blocks of text, so its standard error is that of a ratio: with the
    residuals r = bits - bits_per_byte * bytes of n blocks it is sqrt(n / (n - 1) * sum of r**2) / all bytes
    (Cochran 1977, equation 6.4, blocks taken as a sample of an unlimited text).
    """
    text = _together(windows)
    bits_per_byte = text.loss / math.log(2) / text.size
    residuals = [block.loss / math.log(2) - bits_per_byte * block.size for block in _blocks(windows)]
    n = len(residuals)
    error = math.sqrt(n / (n - 1) * math.fsum(r * r for r in residuals)) / text.size if n > 1 else None
    return Evaluation(
        loss=text.loss / text.tokens,
        bits_per_byte=bits_per_byte,
        standard_error=error,
        tokens=text.tokens,
        bytes=round(text.size),
    )


def _blocks(windows: Sequence[Window]) -> list[Window]:
    """Neighbouring windows put together until each block has BLOCK_BYTES; what is left over joins the last block."""
    blocks: list[list[Window]] = [[]]
    size = 0.0  # of the last block
    for window in windows:
        if size >= BLOCK_BYTES:
            blocks.append([])
            size = 0.0
        blocks[-1].append(window)
        size += window.size
    if len(blocks) > 1 and size < BLOCK_BYTES:
        blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [_together(block) for block in blocks]


def _together(windows: Sequence[Window]) -> Window:
    return Window(
        loss=math.fsum(window.loss for window in windows),
        tokens=sum(window.tokens for window in windows),
        size=math.fsum(window.size for window in windows),
    )
