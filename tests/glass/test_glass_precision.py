"""The audit of precision: its errors are those that a slow obvious twin finds, and the model stays as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightwell
from lightwell.errors import TraceError
from lightwell.glass.precision import precision_audit
from lightwell.glass.pulse import mean_loss
from lightwell.model.build import GPT


def squares(model, x, y):
    return F.mse_loss(model(x), y)


def a_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def data():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(20, 6, generator=generator), torch.randn(20, 1, generator=generator)


def test_errors_are_distances_from_the_gradient_in_float64():
    model, (x, y) = a_net(), data()
    found = precision_audit(model, squares, x, y)
    twin = a_net().double()
    squares(twin, x.double(), y.double()).backward()
    single = a_net()
    squares(single, x, y).backward()
    assert [layer.name for layer in found.layers] == [name for name, _ in model.named_parameters()]
    for layer, exact, rough in zip(found.layers, twin.parameters(), single.parameters(), strict=True):
        assert layer.norm == pytest.approx(float(exact.grad.norm()), rel=1e-12)
        error = float((rough.grad.double() - exact.grad).norm()) / layer.norm
        assert layer.error["float32"] == pytest.approx(error, rel=1e-9)
        assert 1e-9 < layer.error["float32"] < 1e-5 < layer.error["bfloat16"] < 0.1
        assert 0.99 < layer.cosine["bfloat16"] <= 1.0 + 1e-12
    assert not found.hurt("bfloat16")
    assert "precise enough" in str(found)


def test_a_step_that_loses_its_digits_is_said_to_hurt():
    """A large offset: bfloat16 has no digits left for what differs."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[1].weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    x = 1000 + torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    found = precision_audit(model, lambda model, x: model(x).square().mean(), x)
    assert found.hurt("bfloat16")[0] == found.worst("bfloat16")
    assert not found.hurt("float32")
    assert "bfloat16 HURTS" in str(found)
    assert found.to_dict()["hurt"]["bfloat16"]


@pytest.mark.parametrize("config", [lightwell.GPTConfig, lightwell.ModernConfig])
def test_a_gpt(config):
    model = GPT(config(vocab_size=31, context_length=8, emb_dim=16, n_heads=2, n_layers=2), torch.Generator()).eval()
    ids = torch.randint(0, 31, (2, 8), generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = precision_audit(model, mean_loss, ids, ids)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {layer.name for layer in found.layers} == {name for name, _ in model.named_parameters()}
    assert found.loss["float32"] == pytest.approx(found.loss["float64"], rel=1e-5)
    assert all(layer.error["float32"] < layer.error["bfloat16"] for layer in found.layers)


def test_a_step_that_draws_random_numbers_is_refused():
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    with pytest.raises(TraceError, match="the same loss twice"):
        precision_audit(model, squares, *data())
    assert precision_audit(model.eval(), squares, *data()).layers


def test_a_loss_that_is_not_scalar_is_refused():
    with pytest.raises(TraceError, match=r"scalar loss, got one of shape \[20, 1\]"):
        precision_audit(a_net(), lambda model, x: model(x), data()[0])


def test_parameters_without_a_gradient_are_left_out():
    model = a_net()
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    assert "unused" not in [layer.name for layer in precision_audit(model, squares, *data()).layers]
