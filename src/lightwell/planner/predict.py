"""What held-out loss to expect from a model of some size after some text.

    bits per byte = l^rho t^delta (256 / T)^tau (E c^kappa + ((N_c / N)^(alpha / beta) + D_c / D)^beta)

N parameters of the blocks (embeddings and head begin with what was counted, and their size says little) and D tokens of
*new* text (repeated text counts less and less), both in millions. What is lacking of one hides what is lacking of the
other: a larger model gains little where there is little text. T tokens of context: more of it, more to copy from. t, c
and l tell this text from others: the loss of counting sequences, what copying from nearby saves, and how a small model
fared after a moment (text.py).
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
    tau: float


WITH_PILOT = Law(
    alpha=0.391, beta=0.395, delta=1.04, kappa=1.61, rho=0.162, E=0.662, N_c=0.00918, D_c=0.0285, tau=0.0457
)
WITHOUT = Law(alpha=0.385, beta=0.408, delta=1.03, kappa=1.66, rho=1.0, E=0.67, N_c=0.00835, D_c=0.0305, tau=0.045)
SHORT = Law(alpha=0.395, beta=0.224, delta=0.984, kappa=0.788, rho=1.0, E=0.728, N_c=0.0131, D_c=0.000481, tau=0.0195)
USUAL_CONTEXT, LONGEST_CONTEXT = 256, 512  # tokens, of most runs behind the law and of the longest ones
PARAMETERS_PER_TOKEN = 64  # different tokens of the text: more parameters have nothing to learn from
REPETITION = 15.4  # epochs after which repeating has lost most of its use


def predict_bits_per_byte(in_blocks: int, tokens: int, text: Text, context_length: int = USUAL_CONTEXT) -> float:
    """Expected held-out bits per byte of a model with so many parameters in its blocks, after `tokens` of `text`."""
    law = SHORT if text.tokens < PILOT_TOKENS else WITHOUT if text.pilot is None else WITH_PILOT
    new = effective_tokens(tokens, text.tokens) / 1e6
    size = min(in_blocks, PARAMETERS_PER_TOKEN * text.tokens) / 1e6
    lacking = ((law.N_c / size) ** (law.alpha / law.beta) + law.D_c / new) ** law.beta
    around = (USUAL_CONTEXT / min(context_length, LONGEST_CONTEXT)) ** law.tau
    return text.learned**law.rho * text.difficulty**law.delta * around * (law.E * text.copying**law.kappa + lacking)


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + REPETITION * (1 - math.exp(-(tokens / unique - 1) / REPETITION)))
