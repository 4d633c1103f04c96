"""One step against slow twins: a batch in pieces is the batch, a norm is a norm, an update is the textbook's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import Float64, put_together, same, tiny

from lightwell.config.gpt import GPTConfig
from lightwell.config.run import OptimizerSection, ScheduleSection
from lightwell.data.batches import IGNORE, Batch
from lightwell.model.build import GPT
from lightwell.model.count import qkv_rows
from lightwell.runtime.world import World
from lightwell.training.muon import Muon, exact_polar_factor, orthogonalise
from lightwell.training.optimizer import Optimizer, Rates
from lightwell.training.replicas import Replicas
from lightwell.training.schedule import extension, lr_scale
from lightwell.training.step import train_step

CONFIG = GPTConfig(vocab_size=31, context_length=8, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.0)
DEVICE = Float64(torch.device("cpu"), torch.float64)


def make(optimizer="adamw", rate=0.01):
    torch.manual_seed(1)
    model = GPT(CONFIG, torch.Generator().manual_seed(1)).double().train()
    rates = Rates(adamw=rate, adamw_decay=0.1, muon=rate, muon_decay=0.05)
    return Replicas(model, World()), Optimizer(model, CONFIG, OptimizerSection(name=optimizer), rates, DEVICE)


def batch_of(counts, seed=0):
    """Rows with `counts` targets each, at the end of the row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(31, (len(counts), 8), generator=generator)
    targets = torch.randint(31, ids.shape, generator=generator)
    for row, count in enumerate(counts):
        targets[row, : 8 - count] = IGNORE
    return Batch(ids, targets, torch.zeros_like(ids), range(len(counts)))


def step(replicas, optimizer, batch, micro, clip=0.0, lr_scale=1.0, observers=()):
    return train_step(
        replicas, optimizer, batch, micro_batch_size=micro, lr_scale=lr_scale, clip=clip, seed=0, step=0,
        device=DEVICE, world=World(), observers=observers,
    )  # fmt: skip


class Gradients:
    def before_forward(self, model, batch):
        pass

    def after_backward(self, model):
        self.found = {name: p.grad.clone() for name, p in model.named_parameters()}


@settings(deadline=None, max_examples=12)
@given(counts=st.lists(st.integers(0, 8), min_size=2, max_size=6).filter(any), micro=st.integers(1, 5))
def test_accumulation_is_the_large_batch(counts, micro):
    """Values and gradients, with unequal numbers of targets, some rows without any."""
    batch, seen = batch_of(counts), Gradients()
    replicas, optimizer = make()
    model = replicas.model
    logits = model(batch.ids)
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
    mean.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    result = step(replicas, optimizer, batch, micro, observers=[seen])
    assert result.loss.item() == pytest.approx(mean.item(), rel=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(seen.found[name], gradient, rtol=1e-10, atol=1e-14)
    norm = math.sqrt(sum(g.square().sum().item() for g in expected.values()))
    assert result.gradient_norm.item() == pytest.approx(norm, rel=1e-12)


def test_clipping_scales_the_whole_gradient():
    found = {}
    for clip in (0.0, 0.1, 1e9):
        replicas, optimizer = make()
        batch, norms = batch_of([8, 3]), []
        original = optimizer.step
        parameters = list(replicas.model.parameters())

        def remember(scale, apply, norms=norms, parameters=parameters, original=original):
            norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in parameters)))
            original(scale, apply)

        optimizer.step = remember
        result = step(replicas, optimizer, batch, 2, clip=clip)
        found[clip] = (result.gradient_norm.item(), norms[0])
    before = found[0.0][0]
    assert before > 0.1
    assert found[0.0] == pytest.approx((before, before))
    assert found[0.1] == pytest.approx((before, 0.1), rel=1e-5)
    assert found[1e9] == pytest.approx((before, before))


def test_adamw_is_torchs():
    replicas, optimizer = make(rate=0.03)
    twin = GPT(CONFIG).double()
    twin.load_state_dict(replicas.model.state_dict())
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in twin.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in twin.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.03,
        betas=(0.9, 0.95),
        foreach=False,
    )
    for n in range(5):
        batch = batch_of([8, 5, 2], seed=n)
        step(replicas, optimizer, batch, 2, clip=0.5, lr_scale=1 / (n + 1))
        loss, count = twin(batch.ids, batch.targets)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        for group in plain.param_groups:
            group["lr"] = 0.03 / (n + 1)
        plain.step()
        plain.zero_grad()
    for name, p in replicas.model.named_parameters():
        torch.testing.assert_close(p, twin.get_parameter(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (1, 5)])
def test_orthogonalise_nears_the_exact_polar_factor(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = exact_polar_factor(matrix)
    identity = exact @ exact.T if shape[0] <= shape[1] else exact.T @ exact
    torch.testing.assert_close(identity, torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=1e-12)
    near = orthogonalise(matrix)
    U, S, Vh = torch.linalg.svd(near, full_matrices=False)
    assert 0.7 < S.min() <= S.max() < 1.3  # lengths nearly 1, and the very directions of the exact one
    torch.testing.assert_close(U @ Vh, exact, rtol=0, atol=1e-8)
    many = orthogonalise(torch.stack([matrix, 3 * matrix]))
    torch.testing.assert_close(many[0], many[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(many[0], near, rtol=0, atol=1e-12)


def test_muon_is_torchs_within_bfloat16():
    """torch.optim.Muon works in bfloat16, with its own coefficients: given those, the updates agree to its digits."""
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(24, 16, generator=generator))
    ours = theirs.detach().clone().requires_grad_()
    theirs_optimizer = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="original"
    )
    start = theirs.detach().clone()
    muon = Muon({"w": ours}, {}, 0.95, torch.float32)
    for _ in range(4):
        theirs.grad = torch.randn(24, 16, generator=generator)
        ours.grad = theirs.grad.clone()
        theirs_optimizer.step()
        muon.step(0.02, 0.1, torch.tensor(True))
    moved = torch.nn.functional.cosine_similarity((ours - start).flatten(), (theirs - start).flatten(), dim=0)
    assert moved > 0.98
    ratio = (ours - start).norm() / (theirs - start).norm()
    assert 0.8 < ratio < 1.25  # both drive singular values to about 1, with different polynomials


def test_muon_step_is_its_definition():
    """Momentum, look-ahead, the matrices of queries, keys and values apart, decay: by hand in float64."""
    replicas, optimizer = make("muon", rate=0.02)
    name = "blocks.0.attn.qkv.weight"
    weight = replicas.model.get_parameter(name)
    expected, buffer = weight.detach().clone(), torch.zeros_like(weight)
    seen = Gradients()
    for n in range(3):
        step(replicas, optimizer, batch_of([8, 8], seed=n), 2, observers=[seen])
        buffer = 0.9 * buffer + 0.1 * seen.found[name]
        ahead = 0.1 * seen.found[name] + 0.9 * buffer
        turned = torch.cat([orthogonalise(part) for part in ahead.split(qkv_rows(CONFIG))])
        expected = expected - 0.02 * (turned + 0.05 * expected)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("where", ["weight", "gradient", "loss"])
def test_a_bad_number_reaches_neither_weights_nor_moments(optimizer, where):
    replicas, made = make(optimizer)
    step(replicas, made, batch_of([8, 8]), 2)
    before = weights_of(replicas), moments_of(made)
    norm = replicas.model.get_parameter("final_norm.weight")
    kept = norm[0].item()
    handle = None
    if where == "weight":
        with torch.no_grad():
            norm[0] = math.nan
    elif where == "gradient":
        handle = norm.register_hook(lambda gradient: gradient * math.inf)
    else:
        handle = replicas.model.tok_emb.register_forward_hook(lambda module, inputs, output: output * math.nan)
    result = step(replicas, made, batch_of([8, 8]), 1, clip=1.0)
    assert not result.finite
    with torch.no_grad():
        norm[0] = kept
    if handle:
        handle.remove()
    assert same(weights_of(replicas), before[0])
    assert same(moments_of(made), before[1])
    assert step(replicas, made, batch_of([8, 8]), 1).finite
    assert not same(weights_of(replicas), before[0])


def weights_of(replicas):
    return {name: p.detach().clone() for name, p in replicas.model.named_parameters()}


def moments_of(optimizer):
    return {name: tensor.clone() for name, tensor in optimizer.state_tensors()}


def test_schedules_are_these_numbers():
    wsd = ScheduleSection(name="wsd", warmup=0.2, decay=0.4, final=0.0)
    assert [lr_scale(n, 10, wsd) for n in range(10)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    cosine = ScheduleSection(name="cosine", warmup=0.0, final=0.1)
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 5)) for k in (1, 2, 3, 4)]
    assert [lr_scale(n, 4, cosine) for n in range(4)] == pytest.approx(expected)
    assert expected[0] == pytest.approx(0.914058, abs=1e-6)
    constant = ScheduleSection(name="constant", warmup=0.5)
    assert [lr_scale(n, 4, constant) for n in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert [lr_scale(n, 20, wsd, warmup_steps=1) for n in (0, 1, 11, 12)] == pytest.approx([0.5, 1, 1, 8 / 9])
    longer = extension(cosine)
    assert (longer.name, longer.warmup, longer.final) == ("wsd", 0.01, 0.1)


def test_the_rate_of_a_run_is_its_schedule(tmp_path, dataset):
    training = put_together(tmp_path / "run", tiny(steps=10), dataset)
    rates = [training.pace.lr_scale(training.state, n) for n in range(10)]
    assert rates == [lr_scale(n, 10, training.config.schedule) for n in range(10)]
    training.record.close()
