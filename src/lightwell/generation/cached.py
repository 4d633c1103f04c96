"""Several growing texts under one model, and the cache that makes each further token cheap.

Keys and values of the tokens seen are kept, so that a new token costs one step of the model and not one per token of
its context. Texts of unequal length stand side by side, aligned at their ends. When a window is cut (`window.py`), or
the longest text has left and the space it took is used up, the cache is filled anew.

    R rows: texts still growing, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightwell.generation.mode import Model
from lightwell.generation.step import one_token_step
from lightwell.generation.window import window_length
from lightwell.model.cache import KVCache

PADDING = 0  # any token: nothing looks at it


class CachedTexts:
    """The texts `sequences`, each at least one token long, and the model's answer to what follows them.

    `max_new_tokens` is how many tokens each will get at most: the cache is no larger than they need.
    To be used under torch.inference_mode().
    """

    def __init__(self, model: Model, sequences: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self.model = model
        self.sequences = [list(ids) for ids in sequences]
        self.context_length = model.config.context_length
        self.device = next(model.parameters()).device
        room = min(self.context_length, max(map(len, sequences)) + max_new_tokens)
        self.cache = KVCache(model.config, len(sequences), self.device, _cache_dtype(model), room)
        self._step = one_token_step(model)

    def next_logits(self) -> Tensor:
        """The logits of the token that follows each text: (R, V). Between two calls each text grows by one token."""
        if 0 < self.cache.length < self.cache.max_length:  # no window is cut before the cache is full
            return self._step(torch.tensor([ids[-1:] for ids in self.sequences], device=self.device), self.cache)
        windows = [window_length(len(ids), self.context_length) for ids in self.sequences]
        width = max(windows)
        self.cache.reset()
        if min(windows) < width:
            self.cache.start = torch.tensor([width - window for window in windows], device=self.device)
        padded = [[PADDING] * (width - n) + ids[-n:] for n, ids in zip(windows, self.sequences)]
        with last_position_only(self.model):
            return self.model(torch.tensor(padded, device=self.device), cache=self.cache)[:, -1]

    def append(self, tokens: Sequence[int]) -> None:
        """One more token for each text."""
        for ids, token in zip(self.sequences, tokens):
            ids.append(token)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on."""
        self.sequences = [self.sequences[row] for row in rows]
        index = torch.tensor(rows, device=self.device)
        self.cache.keys, self.cache.values = self.cache.keys[:, index], self.cache.values[:, index]
        if self.cache.start is not None:
            self.cache.start = self.cache.start[index]


@contextmanager
def last_position_only(model: Model) -> Iterator[None]:
    """In the `with` block the model's head works on the last token of each row alone: its logits are (B, 1, V).

    Of a long prompt only those are needed, and the head is the largest product of a small model.
    """
    handle = model.head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:],))
    try:
        yield
    finally:
        handle.remove()


def _cache_dtype(model: Model) -> torch.dtype:
    """The dtype in which the model makes keys: that of its weights, or autocast's."""
    weight = next(model.parameters())
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
