"""What held-out loss to expect from a model of some size after some text: a law with three terms.

    bits per byte = h^gamma (E + A / N^alpha + B / D^beta)

N parameters, D tokens of *new* text (repeated text counts less and less), h how hard this text is: the bits per
byte that a general compressor needs for a sample of it, which is known before training.
Sources: the form and alpha, beta: Hoffmann et al. 2022 ("Chinchilla"); repetition: Muennighoff et al. 2023.
gamma, E, A, B were fitted to six small runs of our own (LOG.md).
"""

from __future__ import annotations

import lzma
import math
from dataclasses import dataclass

ALPHA, BETA = 0.34, 0.28
GAMMA = 0.57
E, A, B = 0.80, 11.7, 12.7
REPETITION = 15.4  # epochs after which repeating has lost most of its use
EXCESS = 5.3  # the same for parameters beyond one for each TOKENS_PER_PARAMETER different tokens
TOKENS_PER_PARAMETER = 20
SAMPLE_BYTES = 200_000


@dataclass(frozen=True)
class Text:
    """What the prediction needs to know of a text: its tokens, and how hard it is (`difficulty`)."""

    tokens: int
    difficulty: float


def difficulty(sample: bytes) -> float:
    """Bits per byte that LZMA needs for a sample of a text, which should have SAMPLE_BYTES."""
    packed = lzma.compress(sample, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    return 8 * len(packed) / max(1, len(sample))


def predict_bits_per_byte(parameters: int, tokens: int, text: Text) -> float:
    """Expected held-out bits per byte of a model with `parameters`, trained on `tokens` tokens of `text`."""
    new = effective_tokens(tokens, text.tokens)
    size = effective_parameters(parameters, min(tokens, text.tokens))
    return text.difficulty**GAMMA * (E + A / size**ALPHA + B / new**BETA)


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    return _saturating(tokens, unique, REPETITION)


def effective_parameters(parameters: int, unique: int) -> float:
    """What a model is worth that is larger than so much different text can fill."""
    return _saturating(parameters, max(1, unique / TOKENS_PER_PARAMETER), EXCESS)


def _saturating(amount: float, full: float, lasting: float) -> float:
    """`amount` up to `full`; beyond, each further multiple counts less, in the end `lasting` multiples in all."""
    if amount <= full:
        return float(amount)
    return full * (1 + lasting * (1 - math.exp(-(amount / full - 1) / lasting)))
