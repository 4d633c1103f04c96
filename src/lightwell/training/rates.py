"""The recipe's rules: peak learning rates and weight decays where the config leaves them open.

LOG.md has the experiments behind the numbers.
"""

from __future__ import annotations

import math

from lightwell.config.gpt import ModelConfig
from lightwell.config.run import OptimizerSection
from lightwell.training.optimizer import Rates

MUON = 0.02  # its peak rate
FORGOTTEN = 0.85  # of what a pass through the text taught, at the peak rate, as a power of e (LOG.md)
LARGE, LARGEST_STEP = 8192, 2.0  # tokens of a step to which the rates are the same; and how far they rise (LOG.md)
MOST_FORGOTTEN = 0.02  # in a step: weights that fade faster have no time to learn anything


def peak_rates(section: OptimizerSection, model: ModelConfig) -> Rates:
    """What the config fixes, and the rules for the rest.

    The planner fixes `learning_rate` and `weight_decay` beside Muon, since it knows how long the run will be and how
    often it goes through the text.
    """
    if section.name == "adamw":
        rate = section.learning_rate or min(3e-3, 0.05 / model.emb_dim**0.5)
        decay = 0.1 if section.weight_decay is None else section.weight_decay
        return Rates(adamw=rate, adamw_decay=decay, beta1=0.9 if section.beta1 is None else section.beta1)
    adamw = section.learning_rate or rate_beside_muon(model.emb_dim)
    muon, decay = section.muon_learning_rate or MUON, section.weight_decay or 0.0
    return Rates(
        adamw=adamw,
        adamw_decay=decay * muon / adamw,  # a step takes the same share of every matrix
        beta1=0.8 if section.beta1 is None else section.beta1,
        muon=muon,
        muon_decay=decay,
    )


def rate_beside_muon(emb_dim: int, tokens: float = 0, unique: float = math.inf) -> float:
    """AdamW's peak rate for embeddings, head and gains, in a run of so many tokens, of which `unique` are different.

    It falls with the width, as 1/sqrt(emb_dim): a wider row moves a product by more (Yang et al. 2022 derive 1/width
    for hidden matrices; those are Muon's here, whose update has the same size at every width). And it falls in longer
    runs, since embeddings that begin with counts have a limited way to go, and where a short text is gone through again
    and again: single tokens are what is learned by heart first. The powers are fitted (LOG.md).
    """
    million = 1e6
    long = max(0.4, math.sqrt(min(1.0, million / max(1.0, tokens))))
    repeated = math.sqrt(min(1.0, unique / max(1.0, tokens)))
    short = min(1.0, unique / million) ** 0.25 if tokens > unique else 1.0
    return 0.0125 * min(long, repeated) * short * math.sqrt(128 / emb_dim)


def of_a_large_step(tokens: int) -> float:
    """By how much larger both rates are where a step is made from more than LARGE tokens: as the square root, since the
    gradient's noise falls so (Malladi et al. 2022 derive it for Adam), as far as it was measured."""
    return min(LARGEST_STEP, max(1.0, math.sqrt(tokens / LARGE)))


def decay_beside_muon(steps_of_a_pass: float, muon_rate: float | None = None) -> float:
    """Weight decay for a text that is gone through in so many steps.

    What weights hold fades with the same power of e in each pass, however many steps that is (Wang and Aitchison 2024):
    little in a long text, which is not learned by heart anyway, and as much as the gradients of repeated text keep up.
    """
    return min(FORGOTTEN / steps_of_a_pass, MOST_FORGOTTEN) / (muon_rate or MUON)
