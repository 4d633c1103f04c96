"""One door to both families."""

from __future__ import annotations

import torch

from lightwell.config.gpt import GPTConfig, ModelConfig
from lightwell.model.gpt2 import GPT2
from lightwell.model.modern import Modern


def GPT(config: ModelConfig, generator: torch.Generator | None = None) -> GPT2 | Modern:
    """The model that `config` describes: a plain `torch.nn.Module`, in float32 on the CPU.

    `model(ids)`: (B, T) to logits (B, T, V); `model(ids, targets)`: to (loss_sum, n_targets). See `gpt2.GPT2.forward`.
    generator: for the initial numbers; torch's global one if None. Under `torch.device("meta")` there are shapes and no
        numbers, ready for `load_state_dict(weights, assign=True)`.
    Raises UserError if `config.vocab_size` is None.
    """
    return GPT2(config, generator) if isinstance(config, GPTConfig) else Modern(config, generator)
