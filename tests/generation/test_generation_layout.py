"""Weights in another order: the same numbers, the same model."""

import copy
import mmap

import pytest
import torch

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.generation import layout
from lightwell.generation.layout import lay_out
from lightwell.model.build import GPT

SIZES = {"vocab_size": 61, "context_length": 16, "emb_dim": 24, "n_heads": 3, "n_layers": 2}


@pytest.mark.parametrize(
    "config", [GPTConfig(**SIZES), ModernConfig(**SIZES, tie_embeddings=False)], ids=["gpt2", "modern"]
)
@pytest.mark.parametrize("kernels", [True, False])
def test_the_numbers_stay_and_so_does_the_model(config, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In rows for our step in C, in columns for PyTorch's product."""
    monkeypatch.setattr(layout, "library", lambda: object() if kernels else None)
    model = GPT(config, torch.Generator().manual_seed(1)).double().eval()
    twin = copy.deepcopy(model)
    lay_out(model)
    for (name, weight), (_, before) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(weight, before), name
        assert weight.requires_grad
    weight = model.blocks[0].mlp.up.weight
    assert weight.stride() == ((weight.shape[1], 1) if kernels else (1, weight.shape[0]))
    assert (model.head.weight is model.tok_emb.weight) == config.tie_embeddings
    ids = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(ids), twin(ids), rtol=1e-12, atol=1e-12)
    model.load_state_dict(twin.state_dict())
    assert torch.equal(model.head.weight, twin.head.weight)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="only Linux has huge pages to ask for")
def test_a_system_without_huge_pages_lays_out_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # no advice that there is
    model = GPT(GPTConfig(**SIZES), torch.Generator().manual_seed(1)).eval()
    before = model.blocks[0].mlp.up.weight.detach().clone()
    lay_out(model)
    assert torch.equal(model.blocks[0].mlp.up.weight, before)
