"""Smaller weights: held to the float product of the matrix they stand for, and to what they may lose."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.errors import UserError
from lightwell.generation import quantize as room
from lightwell.generation.engine import Engine
from lightwell.generation.quantize import BF16Linear, Int8Linear, quantize, whole_number_products
from lightwell.generation.sample import GREEDY
from lightwell.model.build import GPT
from lightwell.tokenizer.simple import BytesTokenizer


def seeded(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def linear(n_out: int, n_in: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(generator=seeded(0)).mul_(torch.logspace(-3, 1, n_out)[:, None])
        if bias:
            layer.bias.normal_(generator=seeded(1))
    return layer


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n_out", "n_in"), [(5, 3), (33, 70), (257, 48)])
@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3)])
def test_int8_is_the_float_product_of_its_weight(shape, n_out: int, n_in: int, bias: bool) -> None:
    layer = Int8Linear(linear(n_out, n_in, bias))
    x = torch.randn(*shape, n_in, generator=seeded(2)) * 10.0 ** torch.arange(-3, 3)[: shape[-1], None]
    expected = F.linear(x.double(), layer.weight.double())
    assert layer(x).shape == (*shape, n_out)
    result = layer(x) - (layer.bias if bias else 0)
    # The two digits of x leave an error of at most half a unit of the low one, in each of the n_in products.
    unit = x.abs().amax(-1, keepdim=True) / 127 / 254
    largest = unit / 2 * layer.weight.abs().sum(1)
    assert ((result - expected).abs() <= 1.001 * largest + 1e-5 * expected.abs() + 1e-5).all()


def test_int8_weights_are_within_half_a_step_of_their_row() -> None:
    whole = linear(40, 30)
    layer = Int8Linear(whole)
    step = whole.weight.abs().amax(1, keepdim=True) / 127
    assert ((layer.weight - whole.weight).abs() <= 0.5001 * step).all()
    assert layer.q.abs().amax(1).eq(127).all()


def test_int8_rows_do_not_depend_on_each_other() -> None:
    layer = Int8Linear(linear(64, 48))
    x = torch.randn(5, 48, generator=seeded(3)) * torch.tensor([1e-4, 1, 1e4, 0, 3])[:, None]
    together = layer(x)
    for row, y in zip(x, together):
        assert torch.equal(layer(row[None])[0], y)
    assert torch.equal(together[3], layer.bias)


def test_int8_without_whole_number_products_is_the_same_in_float(monkeypatch) -> None:
    x = torch.randn(3, 48, generator=seeded(4))
    fast = Int8Linear(linear(64, 48))(x)
    monkeypatch.setattr(room, "whole_number_products", lambda: False)
    layer = Int8Linear(linear(64, 48))
    assert layer.packed is None
    assert error(layer(x), fast) < 1e-4
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_products_that_overflow_or_are_missing_are_not_relied_on(monkeypatch) -> None:
    whole_number_products.cache_clear()
    monkeypatch.setattr(room, "_whole_number_product", lambda *_: torch.zeros(2, 32))
    assert not whole_number_products()

    def missing(*_):
        raise RuntimeError("no such product")

    whole_number_products.cache_clear()
    monkeypatch.setattr(room, "_whole_number_product", missing)
    assert not whole_number_products()
    whole_number_products.cache_clear()


@pytest.mark.parametrize("n_rows", [1, 4])
def test_bf16_is_the_float_product_rounded(n_rows: int) -> None:
    layer = BF16Linear(linear(33, 70))
    x = torch.randn(n_rows, 70, generator=seeded(5))
    expected = F.linear(x.bfloat16().double(), layer.weight.double())
    torch.testing.assert_close((layer(x) - layer.bias).double(), expected, rtol=2**-8, atol=1e-5)
    assert layer(x).dtype == torch.float32


CONFIGS = [
    GPTConfig(vocab_size=257, context_length=32, emb_dim=48, n_heads=3, n_layers=2),
    ModernConfig(vocab_size=257, context_length=32, emb_dim=48, n_heads=4, n_kv_heads=2, n_layers=2),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["gpt2", "modern"])
@pytest.mark.parametrize(("kind", "largest_error"), [("bf16", 0.01), ("int8", 0.02)])
def test_a_quantized_model_says_nearly_the_same(config, kind: str, largest_error: float) -> None:
    model = GPT(config, seeded(6)).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    smaller = quantize(model, kind)
    ids = torch.randint(257, (2, 20), generator=seeded(7))
    with torch.inference_mode():
        assert 0 < error(smaller(ids), model(ids)) < largest_error
        loss, _ = smaller(ids, ids)
        assert float(loss) == pytest.approx(float(model(ids, ids)[0]), rel=1e-2)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert smaller.tok_emb.weight is model.tok_emb.weight
    assert not any(isinstance(module, nn.Linear) for module in smaller.modules())


@pytest.mark.parametrize("config", CONFIGS, ids=["gpt2", "modern"])
@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_a_quantized_model_generates(config, kind: str) -> None:
    engine = Engine(quantize(GPT(config, seeded(8)), kind), BytesTokenizer())
    generation = engine.stream(["a", "longer"], max_new_tokens=40, sampling=GREEDY)
    for _ in generation:
        pass
    assert list(map(len, generation.ids)) == [40, 40]


def test_another_kind_or_device_is_said() -> None:
    with pytest.raises(UserError, match="expected weights in bf16 or int8, got 'int3'"):
        quantize(GPT(CONFIGS[0]), "int3")
    with pytest.raises(UserError, match="expected a model on the CPU"):
        quantize(GPT(CONFIGS[0]).to("meta"), "int8")
