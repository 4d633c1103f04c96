"""Generation as one would first write it: the whole window through the model for every token, no cache.

The twin of `engine.py`: slow, and obviously right. Tests hold the engine to it, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightwell.generation.mode import Model, evaluating
from lightwell.generation.sample import GREEDY, Sampling, sample
from lightwell.generation.window import window_length


@torch.inference_mode()
def generate_ids(
    model: Model,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
    separator_id: int | None = None,
) -> list[int]:
    """The tokens that follow `ids`, at most `max_new_tokens`, ending before the separator if one is given.

    `model(ids)`: (1, T) int64 -> logits (1, T, V). `ids` has at least one token; it may be longer than the model's
    context_length (`window.py` says what is then seen). `generator` is needed unless the sampling is greedy.
    """
    device = next(model.parameters()).device
    context_length = model.config.context_length
    sequence = list(ids)
    with evaluating(model):
        for _ in range(max_new_tokens):
            window = sequence[-window_length(len(sequence), context_length) :]
            logits = model(torch.tensor([window], device=device))[:, -1]
            history = [token for token in sequence if token != separator_id]
            token = int(sample(logits, sampling, [history], [generator] if generator else []))
            if token == separator_id:
                break
            sequence.append(token)
    return sequence[len(ids) :]
