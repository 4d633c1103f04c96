"""What held-out loss to expect from a model of some size after some text.

    bits per byte = t^delta (V / 512)^nu h^(tau log2(T / 256)) (f / 0.86)^eta (E c^kappa + lacking)
          lacking = ((N_c / N)^(alpha / beta) + (p / 1.2)^gamma D_c / D)^beta

N parameters of the blocks (embeddings and head begin with what was counted, and their size says little) and D tokens of
*new* text (repeated text counts less and less), both in millions. What is lacking of one hides what is lacking of the
other: a larger model gains little where there is little text. t, c, f, h, p and V tell this text from others
(text.py): the loss of counting sequences, what copying from nearby saves, how much of that from far off, and how much
from twice as far, by which a longer context of T tokens is worth more or less; what stands in phrases, which takes more
text to learn; and how many tokens are in use, of which each is seen the more seldom the more there are.
Sources: how N and D go together: Kaplan et al. 2020, equation 1.5; that something remains (E), and first guesses of
alpha and beta: Hoffmann et al. 2022; repetition: Muennighoff et al. 2023. The constants are fitted by
`benchmarks/law.py` to small runs of our own, once for texts of 300,000 tokens and more and once for shorter ones
(LOG.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lightwell.planner.text import USUAL_FAR, USUAL_PHRASES, USUAL_VOCABULARY, TextStatistics


class Law(NamedTuple):
    """The constants above."""

    alpha: float
    beta: float
    delta: float
    kappa: float
    E: float
    N_c: float
    D_c: float
    tau: float
    nu: float
    eta: float = 0.0
    gamma: float = 0.0


LONG = Law(
    alpha=0.345, beta=0.398, delta=1.02, kappa=1.97, E=0.823, N_c=0.00324, D_c=0.0318, tau=1.09, nu=0.129, eta=-0.623,
    gamma=1.01,
)  # fmt: skip
SHORT = Law(alpha=0.502, beta=0.279, delta=0.988, kappa=0.466, E=0.639, N_c=0.0443, D_c=0.00764, tau=0.0, nu=0.0954)
LEAST_LONG = 300_000  # tokens of a text that is not a short one
LEAST_FAR = 0.7  # of all texts behind the law but one
USUAL_CONTEXT, LONGEST_CONTEXT = 256, 1024  # tokens, of the runs behind the law
PARAMETERS_PER_TOKEN = 64  # different tokens of the text: more parameters have nothing to learn from
REPETITION = 15.4  # epochs after which repeating has lost most of its use


def predict_bits_per_byte(
    in_blocks: int, tokens: int, text: TextStatistics, context_length: int = USUAL_CONTEXT
) -> float:
    """Expected held-out bits per byte of a model with so many parameters in its blocks, after `tokens` of `text`; not
    more than guessing would have."""
    law = SHORT if text.tokens < LEAST_LONG else LONG
    new = effective_tokens(tokens, text.tokens) / 1e6
    size = min(in_blocks, PARAMETERS_PER_TOKEN * text.tokens) / 1e6
    phrases = (text.phrases / USUAL_PHRASES) ** law.gamma
    lacking = ((law.N_c / size) ** (law.alpha / law.beta) + phrases * law.D_c / new) ** law.beta
    context = text.farther ** (law.tau * math.log2(min(context_length, LONGEST_CONTEXT) / USUAL_CONTEXT))
    vocabulary = (text.vocabulary / USUAL_VOCABULARY) ** law.nu
    far = (max(text.far, LEAST_FAR) / USUAL_FAR) ** law.eta
    bits = text.difficulty**law.delta * vocabulary * context * far * (law.E * text.copying**law.kappa + lacking)
    return min(bits, text.guessing)


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + REPETITION * (1 - math.exp(-(tokens / unique - 1) / REPETITION)))
