"""What held-out loss to expect from a model of some size after some text: a law with three terms.

    bits per byte = d^GAMMA (E + A / N^ALPHA) + b^DELTA B / D^BETA

N parameters, D tokens of *new* text (repeated text counts less and less), d and b how hard this text is: what a general
compressor and counted pairs of tokens need for it (text.py). What no size and no amount of text would learn, and what
size is lacking for, goes with the compressor; what training is lacking for begins at the pairs.
Sources: the form and ALPHA, BETA: Hoffmann et al. 2022 ("Chinchilla"); repetition: Muennighoff et al. 2023.
The other constants are fitted by `benchmarks/law.py` to small runs of our own on six texts (LOG.md).
"""

from __future__ import annotations

import math

from lightwell.planner.text import Text

ALPHA, BETA = 0.34, 0.28
GAMMA, DELTA = 0.626, 1.588
E, A, B = 0.486, 15.8, 8.94
PARAMETERS_PER_TOKEN = 10  # different tokens of the text: more parameters have nothing to learn from
REPETITION = 15.4  # epochs after which repeating has lost most of its use


def predict_bits_per_byte(parameters: int, tokens: int, text: Text) -> float:
    """Expected held-out bits per byte of a model with `parameters`, trained on `tokens` tokens of `text`."""
    new = effective_tokens(tokens, text.tokens)
    size = min(parameters, PARAMETERS_PER_TOKEN * text.tokens)
    return text.difficulty**GAMMA * (E + A / size**ALPHA) + text.bigram**DELTA * B / new**BETA


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + REPETITION * (1 - math.exp(-(tokens / unique - 1) / REPETITION)))
