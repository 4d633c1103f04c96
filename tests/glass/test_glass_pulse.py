"""The pulse: what it says is what is there, and a watched run is the run that nobody watched, bit for bit."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.glass import pulse as pulses
from lightwell.glass.pulse import SAMPLE, Pulse, noise_scale, untouched
from lightwell.glass.watching import watch
from lightwell.model.build import GPT

GPT2 = GPTConfig(vocab_size=97, context_length=32, emb_dim=32, n_heads=4, n_layers=2, drop_rate=0.1)
MODERN = ModernConfig(vocab_size=97, context_length=32, emb_dim=32, n_heads=4, n_layers=2)


def batch_of(step: int, B: int = 16, T: int = 32, V: int = 97):
    ids = torch.randint(0, V, (B, T + 1), generator=torch.Generator().manual_seed(step))
    return SimpleNamespace(ids=ids[:, :-1], targets=ids[:, 1:])


def mean_loss_of(forward, batch):
    return pulses.mean_loss(forward, batch.ids, batch.targets)


def train(model, observer, steps: int = 9, loss_of=None, batch_of=batch_of):
    """Steps as the training loop makes them, with an observer or None; the losses."""
    loss_of = loss_of or pulses.mean_loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(5)
    losses = []
    for step in range(1, steps + 1):
        batch = batch_of(step)
        wanted = observer is not None and observer.wants(step)
        if wanted:
            observer.before_forward(model, batch)
        loss = loss_of(model, batch.ids, batch.targets)
        loss.backward()
        if wanted:
            observer.after_backward(model)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if observer is not None:
        observer.at_end()
    return losses


def fresh(config, **attributes):
    model = GPT(config)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model.train()


class Normed(nn.Module):
    """A network with a batch norm, whose running means a careless replay would move."""

    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(97, 16)
        self.norm = nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 97)

    def forward(self, ids):
        x = self.tok(ids)
        return self.out(F.dropout(self.norm(x.flatten(0, 1)).relu(), 0.2, self.training)).view(*ids.shape, 97)


def plain_loss(model, ids, targets):
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


@pytest.mark.parametrize(
    ("make", "loss_of"),
    [
        (lambda: fresh(GPT2), None),
        (lambda: fresh(GPT2, checkpoint_activations=True), None),
        (lambda: fresh(MODERN), None),
        (Normed, plain_loss),
    ],
    ids=["gpt2", "checkpointed", "modern", "batch norm"],
)
def test_a_watched_run_is_the_same_bit_for_bit(make, loss_of):
    torch.manual_seed(0)
    alone = make()
    torch.manual_seed(0)
    watched = make()
    rows = {}
    observer = Pulse(rows.__setitem__, every=3, loss_of=loss_of)
    assert train(alone, None, loss_of=loss_of) == train(watched, observer, loss_of=loss_of)
    assert list(rows) == [1, 3, 6, 9]
    for (name, ours), (_, theirs) in zip(alone.state_dict().items(), watched.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.modules())
    assert all(not p._backward_hooks for p in watched.parameters())


def table(rows):
    return {(layer, name): value for layer, name, value in rows}


def test_weights_gradients_and_updates_are_measured_exactly():
    model = fresh(GPT2)
    found = {}
    observer = Pulse(found.__setitem__, every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {}
    for step in (1, 2, 3):
        batch = batch_of(step)
        if observer.wants(step):
            observer.before_forward(model, batch)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        pulses.mean_loss(model, batch.ids, batch.targets).backward()
        if observer.wants(step):
            observer.after_backward(model)
        if step == 2:
            for name, p in model.named_parameters():
                expected[name, "weight_rms"] = p.detach().square().mean().sqrt()
                expected[name, "gradient_rms"] = p.grad.square().mean().sqrt()
        optimizer.step()
        optimizer.zero_grad()
        if step == 2:
            for name, p in model.named_parameters():
                moved = (p.detach() - before[name]).square().mean().sqrt()
                expected[name, "update_rms"] = moved
                expected[name, "update_ratio"] = moved / expected[name, "weight_rms"].clamp(min=1e-30)
    values = table(found[2])
    for key, value in expected.items():
        assert values[key] == pytest.approx(float(value), rel=1e-4), key
    big = sum(p.numel() * expected[name, "gradient_rms"] ** 2 for name, p in model.named_parameters())
    assert values["", "noise_big"] == pytest.approx(float(big), rel=1e-4)


def test_large_parameters_are_sampled():
    weight = torch.arange(4.0 * SAMPLE).reshape(4, SAMPLE)
    assert len(pulses._sample(weight)) == SAMPLE
    assert pulses._sample(weight)[1] == 4
    small = torch.zeros(3, 5)
    assert pulses._sample(small).data_ptr() != small.data_ptr()


def test_activations_and_gradients_at_modules():
    model = fresh(GPT2).eval()
    batch = batch_of(1)
    kept = {}
    hook = model.blocks[0].register_forward_hook(lambda m, i, o: kept.__setitem__("out", o) or o.retain_grad())
    loss = pulses.mean_loss(model, batch.ids, batch.targets)
    loss.backward()
    hook.remove()
    with watch(model) as seen:
        loss = pulses.mean_loss(model, batch.ids, batch.targets)
    torch.autograd.grad(loss, list(model.parameters()))
    assert float(seen.values["blocks.0", "activation_rms"]) == pytest.approx(
        float(kept["out"].detach().square().mean().sqrt()), rel=1e-5
    )
    assert float(seen.values["blocks.0", "backward_rms"]) == pytest.approx(
        float(kept["out"].grad.square().mean().sqrt()), rel=1e-5
    )
    assert ("blocks.1.mlp", "backward_rms") in seen.values


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "sigmoid", "tanh"])
def test_slopes_that_are_nearly_zero_are_counted(name):
    class Net(nn.Module):
        def forward(self, x):
            return getattr(F, name)(x)

    x = torch.linspace(-20, 20, 401).reshape(1, -1).repeat(3, 1)
    with watch(Net()) as seen:
        Net()(x)
    with watch(model := Net()) as seen:
        model(x)
    y = x.clone().requires_grad_()
    getattr(F, name)(y).sum().backward()
    steepest = {"sigmoid": 0.25, "gelu": 1.13, "silu": 1.1}.get(name, 1.0)
    flat = y.grad.abs() < 0.01 * steepest
    assert float(seen.values[name, "saturated"]) == pytest.approx(float(flat.float().mean()))
    assert torch.equal(seen.alive[name], ~flat.all(0))


def test_an_activation_in_place_is_looked_at_before_it_is_overwritten():
    class Net(nn.Module):
        def forward(self, x):
            return F.relu(x.clone(), inplace=True)

    with watch(model := Net()) as seen:
        out = model(torch.tensor([[-1.0, 2.0]]))
    assert out.tolist() == [[0.0, 2.0]]
    assert float(seen.values["relu", "saturated"]) == 0.5


def test_dead_units_are_dead_for_a_whole_window():
    model = fresh(GPT2)
    with torch.no_grad():
        model.blocks[0].mlp.up.bias[:64] = -1000.0
    found = {}
    train(model, Pulse(found.__setitem__, every=1), steps=6)
    values = [table(found[step]) for step in sorted(found)]
    assert ("blocks.0.mlp/gelu", "dead_units") not in values[2]
    assert values[-1]["blocks.0.mlp/gelu", "dead_units"] == pytest.approx(0.5, abs=0.02)
    assert values[-1]["blocks.1.mlp/gelu", "dead_units"] < 0.1


def test_attention_entropy_is_that_of_the_written_out_softmax():
    q, k, v = (torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(i)) * 2 for i in range(3))

    class Fused(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with watch(model := Fused()) as seen:
        model(q, k, v)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(8)).masked_fill(~torch.ones(12, 12).tril().bool(), -math.inf)
    p = scores[0, :, 1:].softmax(-1)
    entropy = torch.special.entr(p).sum(-1) / torch.arange(2, 13).log()
    assert float(seen.values["", "attention_entropy"]) == pytest.approx(float(entropy.mean()), rel=1e-4)
    assert float(seen.values["", "attention_entropy_lowest"]) == pytest.approx(float(entropy.mean(-1).min()), rel=1e-4)
    finite = scores[0, :, 1:][scores[0, :, 1:].isfinite()]
    assert float(seen.values["", "attention_score_max"]) == pytest.approx(float(finite.abs().max()), rel=1e-5)


def test_masked_and_grouped_attention():
    q, k = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)

    class Fused(nn.Module):
        def forward(self, mask):
            return F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True)

    for mask in (
        torch.ones(6, 6).tril().bool(),
        torch.zeros(6, 6).masked_fill(~torch.ones(6, 6).tril().bool(), -math.inf),
    ):
        with watch(model := Fused()) as seen:
            model(mask)
        assert float(seen.values["", "attention_entropy"]) == pytest.approx(1.0)  # equal scores: looks everywhere alike


def test_the_noise_scale_of_known_noise():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(500, generator=generator, dtype=torch.float64)
    deviation = 3.0  # of each element, in one sequence
    expected = 500 * deviation**2 / float(true.square().sum())

    def squared_norm(size):
        noise = torch.randn(500, generator=generator, dtype=torch.float64) * deviation / math.sqrt(size)
        return float((true + noise).square().sum())

    small, big = [squared_norm(2) for _ in range(400)], [squared_norm(32) for _ in range(400)]
    assert noise_scale(small, big, 2, 32) == pytest.approx(expected, rel=0.1)
    assert noise_scale([], [], 2, 32) is None
    assert noise_scale([1.0], [2.0], 2, 32) is None


def test_the_replay_is_small():
    whole = torch.zeros(16, 128)
    assert Pulse(print, every=50)._part(whole).shape == (8, 128)
    assert Pulse(print, every=10)._part(whole).shape == (1, 128)
    assert Pulse(print, every=10)._part(whole[:1]).shape == (1, 16)
    assert Pulse(print, every=50)._part(whole[:1]).shape == (1, 64)
    assert not Pulse(print, every=0).wants(100)


def test_too_little_memory_is_said_and_survived():
    def greedy(model, ids, targets):
        raise torch.OutOfMemoryError("no")

    said, found = [], {}
    observer = Pulse(found.__setitem__, every=1, loss_of=greedy, on_trouble=said.append)
    train(fresh(GPT2), observer, steps=2)
    assert "not enough memory" in said[0]
    assert ("tok_emb.weight", "gradient_rms") in table(found[1])


def test_random_streams_and_buffers_are_put_back():
    model = nn.BatchNorm1d(3)
    before = model.running_mean.clone()
    state = torch.random.get_rng_state()
    with untouched(model):
        model(torch.randn(5, 3))
        assert not torch.equal(model.running_mean, before)
    assert torch.equal(model.running_mean, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_measuring_takes_no_more_than_its_share(monkeypatch):
    """On a clock of its own: a step takes 1 s, measuring it 0.5 s."""
    clock = [0.0]
    monkeypatch.setattr(pulses.time, "perf_counter", lambda: clock[0])
    rows = []
    pulse = Pulse(lambda step, values: rows.append(step), every=1, share=0.05)
    monkeypatch.setattr(Pulse, "_begin", lambda self, step, model, batch: clock.__setitem__(0, clock[0] + 0.5))
    taken = []
    for step in range(1, 401):
        if pulse.wants(step):
            taken.append(step)
            pulse.before_forward(None, None)
        clock[0] += 1.0
    assert taken[: pulses.FREE] == [1, 2, 3, 4]  # enough for a diagnosis, however long it takes
    assert 0.03 < 0.5 * len(taken) / clock[0] < 0.055
    assert max(b - a for a, b in itertools.pairwise(taken[4:])) <= 11


def test_without_a_share_every_step_that_is_due_is_measured(monkeypatch):
    monkeypatch.setattr(Pulse, "_begin", lambda *_: None)
    pulse = Pulse(lambda step, values: None, every=5)
    assert [step for step in range(1, 31) if pulse.wants(step) or pulse.before_forward(None, None)] == [
        1, 5, 10, 15, 20, 25, 30,
    ]  # fmt: skip
