"""What held-out loss to expect from a model of some size after some text: a law with three terms.

    bits per byte = l^rho t^delta (E c^kappa + (g - 1)^gamma (A / N^alpha + B / D^beta))

N parameters of the blocks (embeddings and head begin with what was counted, and their size says little) and D tokens of
*new* text (repeated text counts less and less), both in millions. t, c, g and l tell this text from others: the loss of
counting sequences in as much of it, what copying from nearby saves, what counting four times as much of it gains (where
that is little, more parameters and tokens gain little too), and how a small model fared after a moment (text.py).
Sources: the form: Hoffmann et al. 2022 ("Chinchilla"); repetition: Muennighoff et al. 2023. The constants are fitted by
`benchmarks/law.py` to small runs of our own, each held near a plain guess (alpha and beta: Hoffmann et al.'s); where no
pilot was run, fitted without it (LOG.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lightwell.planner.text import Text


class Law(NamedTuple):
    """The constants above."""

    alpha: float
    beta: float
    delta: float
    kappa: float
    gamma: float
    rho: float
    E: float
    A: float
    B: float


# The middle of the constants fitted to 27 runs on one processor and to 18 on another, on other texts (LOG.md).
WITH_PILOT = Law(alpha=0.372, beta=0.344, delta=1.22, kappa=1.21, gamma=0.3, rho=0.962, E=0.661, A=0.162, B=0.195)
WITHOUT = Law(alpha=0.367, beta=0.364, delta=1.158, kappa=1.347, gamma=0.307, rho=1.0, E=0.667, A=0.173, B=0.207)
PARAMETERS_PER_TOKEN = 32  # different tokens of the text: more parameters have nothing to learn from
LEAST_GAIN = 0.01  # of a text too short to tell
REPETITION = 15.4  # epochs after which repeating has lost most of its use


def predict_bits_per_byte(in_blocks: int, tokens: int, text: Text) -> float:
    """Expected held-out bits per byte of a model with so many parameters in its blocks, after `tokens` of `text`."""
    law = WITHOUT if text.pilot is None else WITH_PILOT
    new = effective_tokens(tokens, text.tokens) / 1e6
    size = min(in_blocks, PARAMETERS_PER_TOKEN * text.tokens) / 1e6
    more = max(LEAST_GAIN, text.gain - 1) ** law.gamma
    lacking = more * (law.A / size**law.alpha + law.B / new**law.beta)
    counts = text.bits_of_counts(tokens) ** law.delta
    return text.learned**law.rho * counts * (law.E * text.copying**law.kappa + lacking)


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + REPETITION * (1 - math.exp(-(tokens / unique - 1) / REPETITION)))
