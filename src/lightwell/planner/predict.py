"""What held-out loss to expect from a model of some size after some text: a law with three terms.

    bits per byte = t^DELTA (E c^KAPPA + (g - 1)^GAMMA (A / N^ALPHA + B / D^BETA))

N parameters of the blocks (embeddings and head begin with what was counted, and their size says little) and D tokens of
*new* text (repeated text counts less and less), both in millions. t, c and g tell this text from others: the loss of
counting sequences in as much of it, what copying from nearby saves, and what counting four times as much of it gains.
Where that is little, more parameters and tokens gain little too (text.py).
Sources: the form: Hoffmann et al. 2022 ("Chinchilla"); repetition: Muennighoff et al. 2023. The constants are fitted by
`benchmarks/law.py` to small runs of our own on twenty-one texts, ALPHA and BETA held near Hoffmann et al.'s (LOG.md).
"""

from __future__ import annotations

import math

from lightwell.planner.text import Text

ALPHA, BETA = 0.303, 0.300
DELTA, KAPPA, GAMMA = 1.115, 1.186, 0.329
E, A, B = 0.707, 0.191, 0.216
PARAMETERS_PER_TOKEN = 32  # different tokens of the text: more parameters have nothing to learn from
LEAST_GAIN = 0.01  # of a text too short to tell
REPETITION = 15.4  # epochs after which repeating has lost most of its use


def predict_bits_per_byte(in_blocks: int, tokens: int, text: Text) -> float:
    """Expected held-out bits per byte of a model with so many parameters in its blocks, after `tokens` of `text`."""
    new = effective_tokens(tokens, text.tokens) / 1e6
    size = min(in_blocks, PARAMETERS_PER_TOKEN * text.tokens) / 1e6
    more = max(LEAST_GAIN, text.gain - 1) ** GAMMA
    return text.bits_of_counts(tokens) ** DELTA * (E * text.copying**KAPPA + more * (A / size**ALPHA + B / new**BETA))


def effective_tokens(tokens: int, unique: int) -> float:
    """How much new text a training on `tokens` tokens is worth when only `unique` of them are different."""
    if tokens <= unique:
        return float(tokens)
    return unique * (1 + REPETITION * (1 - math.exp(-(tokens / unique - 1) / REPETITION)))
