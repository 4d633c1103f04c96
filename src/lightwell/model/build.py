"""One door to both families."""

from __future__ import annotations

import torch

from lightwell.config.gpt import GPTConfig, ModelConfig
from lightwell.model.gpt2 import GPT2
from lightwell.model.init import initialise
from lightwell.model.modern import Modern
from lightwell.model.tying import share_weight


def GPT(config: ModelConfig, generator: torch.Generator | None = None) -> GPT2 | Modern:
    """The model that `config` describes, a plain `torch.nn.Module` on the CPU in float32, initialised from `generator`.

    `model(ids)`: (B, T) to logits (B, T, V); `model(ids, targets)`: to (loss_sum, n_targets). See `gpt2.GPT2.forward`.
    Raises UserError if `config.vocab_size` is None.
    """
    with torch.device("meta"):  # no storage yet: each weight is drawn once, by us
        model = empty(config)
    model.to_empty(device="cpu")
    if config.tie_embeddings:
        share_weight(model)  # to_empty gave each name its own tensor
    initialise(model, generator)
    return model


def empty(config: ModelConfig) -> GPT2 | Modern:
    """The module of `config`'s family. Under `torch.device("meta")` it has shapes and no numbers, ready for
    `load_state_dict(weights, assign=True)`."""
    return GPT2(config) if isinstance(config, GPTConfig) else Modern(config)
