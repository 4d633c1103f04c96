"""The fast models against their slow twin in float64: logits, loss and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.model import loss, reference
from lightwell.model.build import GPT

SMALL = {"vocab_size": 29, "context_length": 11, "n_layers": 2}
CONFIGS: dict[str, ModelConfig] = {
    "gpt2, three heads": GPTConfig(**SMALL, emb_dim=15, n_heads=3),
    "gpt2, with qkv bias, untied": GPTConfig(**SMALL, emb_dim=8, n_heads=2, qkv_bias=True, tie_embeddings=False),
    "gpt2, one head, narrow MLP": GPTConfig(**SMALL, emb_dim=7, n_heads=1, hidden_dim=5),
    "modern, three heads": ModernConfig(**SMALL, emb_dim=18, n_heads=3),
    "modern, grouped, untied": ModernConfig(**SMALL, emb_dim=12, n_heads=6, n_kv_heads=2, tie_embeddings=False),
    "modern, heads wider than the stream": ModernConfig(
        **SMALL, emb_dim=9, n_heads=3, n_kv_heads=1, head_dim=8, hidden_dim=13, rope_theta=37.0, norm_eps=1e-3
    ),
}


def model_of(config: ModelConfig) -> torch.nn.Module:
    """A model in float64 whose every parameter, norms and biases too, is far from its neutral value."""
    model = GPT(config).double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def batch_of(config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Three windows with some targets left out, and documents that begin at different places."""
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(0, SMALL["vocab_size"], (3, SMALL["context_length"]), generator=generator)
    targets = ids.roll(-1, dims=1)
    targets[:, -1] = -100
    targets[1, :4] = -100
    documents = torch.tensor([[0] * 11, [0] * 3 + [1] * 8, [4] * 5 + [9] + [2] * 5])
    return ids, targets, documents


def twin_gradients(config: ModelConfig, model: torch.nn.Module, *arguments: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in model.state_dict().items()}
    loss_sum, _ = reference.forward(config, weights, *arguments)
    loss_sum.backward()
    return loss_sum.detach(), {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Relative to the largest number of b."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed documents"])
@pytest.mark.parametrize("rows", [None, 4], ids=["plain loss", "loss by pieces"])
def test_logits_loss_and_every_gradient_equal_the_twins(
    config: ModelConfig, packed: bool, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rows:
        monkeypatch.setattr(loss, "piece_rows", lambda *_, **__: rows)
    model = model_of(config)
    ids, targets, documents = batch_of(config)
    documents = documents if packed else None

    logits = model(ids, documents=documents).detach()
    expected = reference.forward(config, model.state_dict(), ids, documents=documents)
    assert largest_difference(logits, expected) < 1e-10

    loss_sum, n_targets = model(ids, targets, documents=documents)
    loss_sum.backward()
    expected_sum, expected_gradients = twin_gradients(config, model, ids, targets, documents)
    assert n_targets.item() == 33 - 3 - 4
    assert largest_difference(loss_sum.detach(), expected_sum) < 1e-10
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        assert largest_difference(gradients[name], expected) < 1e-10, name


def test_the_twin_leaves_out_ignored_targets() -> None:
    config = CONFIGS["gpt2, three heads"]
    model = model_of(config)
    ids, targets, _ = batch_of(config)
    loss_sum, n_targets = reference.forward(config, model.state_dict(), ids, torch.full_like(targets, -100))
    assert loss_sum.item() == 0
    assert n_targets.item() == 0


def test_the_twin_knows_textbook_values() -> None:
    assert reference.softmax(torch.tensor([0.0, 0.0, 0.0, 0.0]).double()).tolist() == [0.25] * 4
    assert reference.gelu(torch.tensor([0.0, 100.0, -100.0]).double()).tolist() == [0.0, 100.0, 0.0]
    assert reference.silu(torch.tensor([0.0, 1.0]).double())[1].item() == pytest.approx(0.7310585786300049, abs=1e-15)
    row = reference.layer_norm(torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.ones(3), torch.zeros(3))
    assert row.tolist()[0] == pytest.approx([-1.2247356859083902, 0.0, 1.2247356859083902], abs=1e-14)
    quarter_turn = reference.rope(torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double(), theta=10_000.0)
    assert quarter_turn[1].tolist() == pytest.approx([0.5403023058681398, 0.8414709848078965], abs=1e-15)
    logits = torch.zeros(1, 2, 8).double()
    assert reference.cross_entropy(logits, torch.tensor([[3, 7]]))[0].item() == pytest.approx(2 * 2.0794415416798357)
