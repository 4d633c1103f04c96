"""What held-out loss to expect from a model of some size after some text.

    bits per byte = l^rho t^delta (E c^kappa + ((N_c / N)^(alpha / beta) + D_c / D)^beta)

N parameters of the blocks (embeddings and head begin with what was counted, and their size says little) and D tokens of
*new* text (repeated text counts less and less), both in millions. What is lacking of one hides what is lacking of the
other: a larger model gains little where there is little text. t, c and l tell this text from others: the loss of
counting sequences, what copying from nearby saves, and how a small model fared after a moment (text.py).
Sources: how N and D go together: Kaplan et al. 2020, equation 1.5; that something remains (E), and first guesses of
alpha and beta: Hoffmann et al. 2022; repetition: Muennighoff et al. 2023. The constants are fitted by
`benchmarks/law.py` to small runs of our own: with a pilot, without one, and to texts too short for one (LOG.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lightwell.planner.text import PILOT_TOKENS, Text


class Law(NamedTuple):
    """The constants above."""

    alpha: float
    beta: float
    delta: float
    kappa: float
    rho: float
    E: float
    N_c: float
    D_c: float


WITH_PILOT = Law(alpha=0.372, beta=0.388, delta=1.09, kappa=1.46, rho=0.63, E=0.661, N_c=0.00639, D_c=0.0234)
WITHOUT = Law(alpha=0.372, beta=0.401, delta=1.04, kappa=1.59, rho=1.0, E=0.681, N_c=0.00623, D_c=0.0248)
SHORT = Law(alpha=0.402, beta=0.242, delta=0.931, kappa=0.337, rho=1.0, E=0.735, N_c=0.0163, D_c=0.00115)
PARAMETERS_PER_TOKEN = 64  # different tokens of the text: more parameters have nothing to learn from
REPETITION = 15.4  # epochs after which repeating has lost most of its use


def predict_bits_per_byte(in_blocks: int, tokens: int, text: Text) -> float:
    """Expected held-out bits per byte of a model with so many parameters in its blocks, after `tokens` of `text`."""
    law = SHORT if text.tokens < PILOT_TOKENS else WITHOUT if text.pilot is None else WITH_PILOT
    new = effective_tokens(tokens, text.tokens) / 1e6
    size = min(in_blocks, PARAMETERS_PER_TOKEN * text.tokens) / 1e6
    lacking = ((law.N_c / size) ** (law.alpha / law.beta) + law.D_c / new) ** law.beta
    return text.learned**law.rho * text.difficulty**law.delta * (law.E * text.copying**law.kappa + lacking)


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + REPETITION * (1 - math.exp(-(tokens / unique - 1) / REPETITION)))
