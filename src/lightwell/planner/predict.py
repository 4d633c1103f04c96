"""What held-out loss to expect from a model of some size after some text: a law with three terms.

    bits per byte = l^rho t^delta (E c^kappa + (g - 1)^gamma (A / N^alpha + B / D^beta))

N parameters of the blocks (embeddings and head begin with what was counted, and their size says little) and D tokens of
*new* text (repeated text counts less and less), both in millions. t, c, g and l tell this text from others: the loss of
counting sequences in as much of it, what copying from nearby saves, what counting four times as much of it gains (where
that is little, more parameters and tokens gain little too), and how a small model fared after a moment (text.py).
Sources: the form: Hoffmann et al. 2022 ("Chinchilla"); repetition: Muennighoff et al. 2023. The constants are fitted by
`benchmarks/law.py` to small runs of our own, alpha and beta held near Hoffmann et al.'s; where no pilot was run, fitted
without it (LOG.md).
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
    R: float  # times through a text after which repeating it has lost most of its use


WITH_PILOT = Law(
    alpha=0.421, beta=0.34, delta=1.323, kappa=1.259, gamma=0.397, rho=1.309, E=0.669, A=0.16, B=0.19, R=15.4
)
WITHOUT = Law(
    alpha=0.376, beta=0.361, delta=1.231, kappa=1.411, gamma=0.328, rho=1.0, E=0.664, A=0.161, B=0.196, R=15.4
)
PARAMETERS_PER_TOKEN = 32  # different tokens of the text: more parameters have nothing to learn from
LEAST_GAIN = 0.01  # of a text too short to tell


def predict_bits_per_byte(in_blocks: int, tokens: int, text: Text) -> float:
    """Expected held-out bits per byte of a model with so many parameters in its blocks, after `tokens` of `text`."""
    law = WITHOUT if text.pilot is None else WITH_PILOT
    new = effective_tokens(tokens, text.tokens, law.R) / 1e6
    size = min(in_blocks, PARAMETERS_PER_TOKEN * text.tokens) / 1e6
    more = max(LEAST_GAIN, text.gain - 1) ** law.gamma
    lacking = more * (law.A / size**law.alpha + law.B / new**law.beta)
    counts = text.bits_of_counts(tokens) ** law.delta
    return text.learned**law.rho * counts * (law.E * text.copying**law.kappa + lacking)


def effective_tokens(tokens: int, unique: int, repetition: float) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different: at most
    `repetition` times more than these."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + repetition * (1 - math.exp(-(tokens / unique - 1) / repetition)))
