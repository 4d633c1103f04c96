"""The key/value cache: what attention needs of the tokens already seen, kept so that each new token costs one step.

Letters as in gpt2.py and modern.py; L is the number of tokens that there is room for. The buffers are allocated once.
Rows of unequal length are aligned at their ends, padded on the left; `start` says where each one begins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightwell.config.gpt import GPTConfig, ModelConfig


class KVCache:
    """Keys and values of every layer for `batch_size` sequences of at most `max_length` tokens (default: the context).

    length: tokens held so far, padding included. start: (batch_size,) int64, the first slot of each row that is not
    padding, or None if all begin at 0; set it before the first forward pass. After `reset` the object serves again.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_length: int | None = None,
    ) -> None:
        heads, head_dim = key_heads(config)
        self.max_length = max_length or config.context_length
        shape = (config.n_layers, batch_size, heads, self.max_length, head_dim)  # (layers, B, G, L, D)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        self.start: Tensor | None = None

    def __getitem__(self, layer: int) -> LayerCache:
        return LayerCache(self, layer)

    def advance(self, n: int) -> None:
        """Counts `n` new tokens: called once per forward pass, when every layer has stored them."""
        self.length += n

    def reset(self) -> None:
        """Forgets everything; the memory stays allocated."""
        self.length = 0
        self.start = None


class LayerCache:
    """One layer's part of a `KVCache`."""

    def __init__(self, cache: KVCache, layer: int) -> None:
        self.cache = cache
        self.layer = layer

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new tokens' keys and values (B, G, T, D); returns all of them, (B, G, S, D), as views."""
        begin, end = self.cache.length, self.cache.length + k.shape[2]
        keys, values = self.cache.keys[self.layer], self.cache.values[self.layer]
        keys[:, :, begin:end] = k
        values[:, :, begin:end] = v
        return keys[:, :, :end], values[:, :, :end]


def key_heads(config: ModelConfig) -> tuple[int, int]:
    if isinstance(config, GPTConfig):
        return config.n_heads, config.head_dim
    return config.kv_heads, config.size_per_head
