"""The recipe's rules: peak learning rates and weight decays where the config leaves them open.

LOG.md has the experiments behind the numbers.
"""

from __future__ import annotations

from lightwell.config.gpt import ModelConfig
from lightwell.config.run import OptimizerSection
from lightwell.training.optimizer import Rates


def peak_rates(section: OptimizerSection, model: ModelConfig) -> Rates:
    """What the config fixes, and the rules for the rest.

    AdamW's rate falls with the width, as 1/sqrt(emb_dim): a wider row moves a product by more (Yang et al. 2022 derive
    1/width for hidden matrices; those are Muon's here, whose update has the same size at every width).
    """
    if section.name == "adamw":
        rate = section.learning_rate or min(3e-3, 0.05 / model.emb_dim**0.5)
        decay = 0.1 if section.weight_decay is None else section.weight_decay
        return Rates(adamw=rate, adamw_decay=decay, beta1=0.9 if section.beta1 is None else section.beta1)
    return Rates(
        adamw=section.learning_rate or 0.0125 * (128 / model.emb_dim) ** 0.5,
        adamw_decay=0.0,
        beta1=0.8 if section.beta1 is None else section.beta1,
        muon=section.muon_learning_rate or 0.02,
        muon_decay=0.0 if section.weight_decay is None else section.weight_decay,
    )
