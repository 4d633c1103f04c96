"""The rules for rates and weight decay, and that a step shrinks every matrix alike."""

import math

import pytest
import torch

from lightwell.config.run import changed, parse
from lightwell.model.build import GPT
from lightwell.planner.choose import with_rates
from lightwell.runtime.device import choose_device
from lightwell.training.optimizer import Optimizer
from lightwell.training.rates import (
    LARGEST_STEP,
    MUON,
    decay_beside_muon,
    of_a_large_step,
    peak_rates,
    rate_beside_muon,
)

CPU = choose_device("cpu", "float32")
MODEL = {"vocab_size": 50, "context_length": 16, "emb_dim": 32, "n_layers": 2, "n_heads": 2, "tie_embeddings": False}


def config_of(**optimizer):
    return parse({"model": MODEL, "train": {"batch_size": 4}, "optimizer": optimizer})


def test_the_rate_falls_with_width_length_and_repetition():
    usual = rate_beside_muon(128)
    assert rate_beside_muon(512) == pytest.approx(usual / 2)
    assert rate_beside_muon(128, 2_000_000) == pytest.approx(usual / math.sqrt(2))
    assert rate_beside_muon(128, 10**12) == pytest.approx(0.4 * usual)
    assert rate_beside_muon(128, 900_000, 300_000) < rate_beside_muon(128, 900_000, 900_000) == usual


def test_weights_fade_alike_in_each_pass_however_many_steps_it_takes():
    assert 100 * decay_beside_muon(100) == pytest.approx(70 * decay_beside_muon(70))
    assert decay_beside_muon(100, muon_rate=0.01) == pytest.approx(2 * decay_beside_muon(100))
    assert decay_beside_muon(math.inf) == 0
    assert decay_beside_muon(0.1) == decay_beside_muon(10) == 1, "a short text does not keep weights from learning"


def test_what_is_fixed_stays_and_the_rest_is_ruled():
    config = with_rates(config_of(), 640_000, 64_000)
    assert config.optimizer.learning_rate == rate_beside_muon(32, 640_000, 64_000)
    assert config.optimizer.weight_decay == decay_beside_muon(1000)
    fixed = config_of(learning_rate=0.001, weight_decay=0.0)
    assert with_rates(fixed, 640_000, 64_000) == fixed
    assert with_rates(config_of(), 640_000, math.inf).optimizer.weight_decay == 0
    assert with_rates(config_of(name="adamw"), 640_000, 64_000) == config_of(name="adamw")


def test_larger_steps_have_larger_rates():
    usual = with_rates(config_of(), 640_000, 64_000).optimizer
    large = with_rates(changed(config_of(), train={"batch_size": 1024}), 640_000, 64_000).optimizer  # 16,384 tokens
    assert large.muon_learning_rate == pytest.approx(math.sqrt(2) * MUON)
    assert large.learning_rate == pytest.approx(math.sqrt(2) * usual.learning_rate)
    assert usual.muon_learning_rate is None
    assert of_a_large_step(8192) == 1
    assert of_a_large_step(10**9) == LARGEST_STEP
    kept = with_rates(changed(config_of(muon_learning_rate=0.01), train={"batch_size": 1024}), 640_000, 64_000)
    assert kept.optimizer.muon_learning_rate == 0.01


@pytest.mark.parametrize("learning_rate", [None, 1e-4])
def test_a_step_takes_the_same_share_of_every_matrix(learning_rate):
    config = config_of(weight_decay=0.5, learning_rate=learning_rate)
    sizes = config.model.complete()
    model = GPT(sizes)
    optimizer = Optimizer(model, sizes, config.optimizer, peak_rates(config.optimizer, sizes), CPU)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.5, torch.tensor(True))
    for name, p in model.named_parameters():
        share = 1 - 0.5 * 0.02 * 0.5 if p.ndim == 2 else 1.0
        torch.testing.assert_close(p.detach(), share * before[name], rtol=1e-6, atol=0)
