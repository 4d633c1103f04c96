"""What held-out loss to expect from a model of some size after some text.

    bits per byte = l^rho t^delta f^(1 - c) (E c^kappa + ((N_c / N)^(alpha / beta) + D_c / D)^beta)
                f = (256 / T)^tau (V / 2048)^nu

N parameters of the blocks (embeddings and head begin with what was counted, and their size says little) and D tokens of
*new* text (repeated text counts less and less), both in millions. What is lacking of one hides what is lacking of the
other: a larger model gains little where there is little text. t, c and l tell this text from others: the loss of
counting sequences, what copying from nearby saves, and how a small model fared after a moment (text.py). The more can
be copied, the more there is to gain from a longer context (T tokens) and a smaller vocabulary (V).
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
    nu: float


WITH_PILOT = Law(
    alpha=0.347, beta=0.421, delta=1.07, kappa=1.75, rho=0.298, E=0.667, N_c=0.00335, D_c=0.0286, tau=0.305, nu=0.394
)
WITHOUT = Law(
    alpha=0.343, beta=0.452, delta=1.05, kappa=1.85, rho=1.0, E=0.68, N_c=0.00319, D_c=0.0345, tau=0.299, nu=0.327
)
SHORT = Law(
    alpha=0.552, beta=0.262, delta=0.937, kappa=0.438, rho=1.0, E=0.593, N_c=0.056, D_c=0.0072, tau=0.0736, nu=0.178
)
USUAL_CONTEXT, LONGEST_CONTEXT, USUAL_VOCAB = 256, 1024, 2048  # of the runs behind the law
PARAMETERS_PER_TOKEN = 64  # different tokens of the text: more parameters have nothing to learn from
REPETITION = 15.4  # epochs after which repeating has lost most of its use


def predict_bits_per_byte(
    in_blocks: int, tokens: int, text: Text, context_length: int = USUAL_CONTEXT, vocab_size: int = USUAL_VOCAB
) -> float:
    """Expected held-out bits per byte of a model with so many parameters in its blocks, after `tokens` of `text`."""
    law = SHORT if text.tokens < PILOT_TOKENS else WITHOUT if text.pilot is None else WITH_PILOT
    new = effective_tokens(tokens, text.tokens) / 1e6
    size = min(in_blocks, PARAMETERS_PER_TOKEN * text.tokens) / 1e6
    lacking = ((law.N_c / size) ** (law.alpha / law.beta) + law.D_c / new) ** law.beta
    form = (USUAL_CONTEXT / min(context_length, LONGEST_CONTEXT)) ** law.tau * (vocab_size / USUAL_VOCAB) ** law.nu
    of_text = text.learned**law.rho * text.difficulty**law.delta * form ** (1 - text.copying)
    return of_text * (law.E * text.copying**law.kappa + lacking)


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + REPETITION * (1 - math.exp(-(tokens / unique - 1) / REPETITION)))
