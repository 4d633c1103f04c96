"""What held-out loss to expect from a model of some size after some text: a law with three terms.

    bits per byte = d^GAMMA (E + A / N^ALPHA) + b^DELTA B / D^BETA

N parameters and D tokens of *new* text, both in millions (repeated text counts less and less); d and b say how hard
this text is: what a general compressor and counted pairs of tokens need for it (text.py). What no size and no amount of
text would learn, and what size is lacking for, goes with the compressor; what training is lacking for begins at pairs.
Sources: the form: Hoffmann et al. 2022 ("Chinchilla"); repetition: Muennighoff et al. 2023. The constants are fitted by
`benchmarks/law.py` to small runs of our own on seven texts, ALPHA and BETA held near Hoffmann et al.'s (LOG.md).
"""

from __future__ import annotations

import math

from lightwell.planner.text import Text

ALPHA, BETA = 0.357, 0.334
GAMMA, DELTA = 0.952, 1.374
E, A, B = 0.311, 0.146, 0.248
PARAMETERS_PER_TOKEN = 8  # different tokens of the text: more parameters have nothing to learn from
REPETITION = 15.4  # epochs after which repeating has lost most of its use


def predict_bits_per_byte(parameters: int, tokens: int, text: Text) -> float:
    """Expected held-out bits per byte of a model with `parameters`, trained on `tokens` tokens of `text`."""
    new = effective_tokens(tokens, text.tokens) / 1e6
    size = min(parameters, PARAMETERS_PER_TOKEN * text.tokens) / 1e6
    return text.difficulty**GAMMA * (E + A / size**ALPHA) + text.bigram**DELTA * B / new**BETA


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + REPETITION * (1 - math.exp(-(tokens / unique - 1) / REPETITION)))
