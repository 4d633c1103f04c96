"""The key/value cache: any way of cutting a sequence, and rows of unequal length, give what one whole pass gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.errors import UserError
from lightwell.model.build import GPT
from lightwell.model.cache import KVCache

SMALL = {"vocab_size": 23, "context_length": 12, "n_layers": 2}
CONFIGS: list[ModelConfig] = [
    GPTConfig(**SMALL, emb_dim=15, n_heads=3),
    ModernConfig(**SMALL, emb_dim=12, n_heads=6, n_kv_heads=2),
]
families = pytest.mark.parametrize("config", CONFIGS, ids=["gpt2", "modern"])
MODELS = {config.family: GPT(config, torch.Generator().manual_seed(3)).double().eval() for config in CONFIGS}
IDS = torch.randint(0, 23, (4, 12), generator=torch.Generator().manual_seed(4))


@families
@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_a_sequence_in_pieces_equals_it_whole(config: ModelConfig, pieces: list[int]) -> None:
    model, cache = MODELS[config.family], KVCache(config, 4, dtype=torch.float64)
    length = min(sum(pieces), 12)
    with torch.no_grad():
        whole = model(IDS[:, :length])
        parts, begin = [], 0
        for size in pieces:
            if begin < length:
                parts.append(model(IDS[:, begin : min(begin + size, length)], cache=cache))
                begin += size
    assert cache.length == length
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-13)


@families
def test_rows_of_unequal_length_equal_each_row_alone(config: ModelConfig) -> None:
    model, cache = MODELS[config.family], KVCache(config, 4, dtype=torch.float64)
    lengths = [8, 3, 1, 6]
    cache.start = torch.tensor([8 - length for length in lengths])
    padded = torch.zeros(4, 8, dtype=torch.int64)
    for row, length in enumerate(lengths):
        padded[row, 8 - length :] = IDS[row, :length]
    following = torch.stack([IDS[row, length : length + 3] for row, length in enumerate(lengths)])
    with torch.no_grad():
        logits = [
            model(padded, cache=cache),
            model(following[:, :2], cache=cache),
            model(following[:, 2:], cache=cache),
        ]
        together = torch.cat(logits, dim=1)
        for row, length in enumerate(lengths):
            alone = model(IDS[row : row + 1, : length + 3])[0]
            torch.testing.assert_close(together[row, 8 - length :], alone, rtol=0, atol=1e-13)


@families
def test_reset_forgets(config: ModelConfig) -> None:
    model, cache = MODELS[config.family], KVCache(config, 4, dtype=torch.float64, max_length=5)
    cache.start = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        model(IDS[:, :4], cache=cache)
        cache.reset()
        assert (cache.length, cache.start) == (0, None)
        torch.testing.assert_close(model(IDS[:, 4:9], cache=cache), model(IDS[:, 4:9]), rtol=0, atol=1e-13)


@families
def test_a_full_cache_says_so(config: ModelConfig) -> None:
    cache = KVCache(config, 4, dtype=torch.float64)
    with torch.no_grad():
        MODELS[config.family](IDS, cache=cache)
        with pytest.raises(UserError, match="expected at most 12 tokens in the cache, got 12 and 1 more"):
            MODELS[config.family](IDS[:, :1], cache=cache)


def test_its_size_is_heads_of_keys_times_length() -> None:
    gpt2, modern = (KVCache(config, 4, dtype=torch.bfloat16, max_length=7) for config in CONFIGS)
    assert gpt2.keys.shape == gpt2.values.shape == (2, 4, 3, 7, 5)  # layers, rows, heads of keys, tokens, head_dim
    assert modern.keys.shape == modern.values.shape == (2, 4, 2, 7, 2)
