"""Programs that users write and that had crashed, been changed or been accused falsely: none of that again."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lightwell
from lightwell.errors import TraceError
from lightwell.glass.precision import precision_audit


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weight(*shape, seed=1, dtype=torch.float32):
    return numbers(*shape, seed=seed, dtype=dtype).requires_grad_()


def verdicts(trace):
    return {row.operation: row.verdict for row in trace.verify().rows}


class Forgets(torch.autograd.Function):
    """a b, whose backward forgets b."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[1], None


class OnceOnly(torch.autograd.Function):
    """2 a, whose backward autograd cannot differentiate."""

    @staticmethod
    def forward(ctx, a):
        return 2 * a

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        return a.clone()

    @staticmethod
    def backward(ctx, g):
        raise ValueError("boom")


# --- nothing of the program's is changed ------------------------------------------------------------------------------


def test_verify_leaves_large_gradients_in_float64_alone():
    model = nn.Linear(10_000, 2).double()
    with lightwell.trace() as t:
        model(numbers(4, 10_000, dtype=torch.float64)).square().sum().backward()
    before = model.weight.grad.clone()
    assert t.verify().agree
    assert torch.equal(model.weight.grad, before)


def test_verify_does_not_run_a_checkpointed_module_again():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    x = weight(6, 3, dtype=torch.float64)
    with lightwell.trace() as t:
        checkpoint(net, x, use_reentrant=True).square().sum().backward()
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert t.verify().agree
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_audit_of_precision_leaves_running_means_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = copy.deepcopy(model.state_dict())
    precision_audit(model, lambda m, x: m(x).square().mean(), numbers(8, 3))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# --- what runs without a trace runs in one ----------------------------------------------------------------------------


def test_sparse_gradients():
    table = nn.Embedding(7, 3, sparse=True)
    with lightwell.trace() as t:
        table(torch.tensor([1, 2, 2])).square().sum().backward()
    assert t.verify().agree
    found = t.explain(table.weight, (2, 0))
    assert found.value == pytest.approx(float(table.weight.grad.to_dense()[2, 0]))


def test_torch_func_runs_inside_a_trace_and_is_not_shown():
    w = weight(3)
    with lightwell.trace() as t:
        inside = torch.func.grad(lambda v: (v**3).sum())(w.detach())
        jacobian = torch.func.jacrev(lambda v: v * v)(w.detach())
        (w * inside).sum().backward()
    assert torch.allclose(inside, 3 * w.detach() ** 2)
    assert torch.allclose(jacobian, torch.diag(2 * w.detach()))
    assert torch.equal(w.grad, inside)
    assert any("torch.func" in note for note in t.notes)


def test_a_backward_that_fails_is_told_as_such():
    w = weight(3)
    with lightwell.trace() as t:
        loss = Fails.apply(w).sum()
        with pytest.raises(ValueError, match="boom"):
            loss.backward()
    with pytest.raises(TraceError, match="one that failed: boom"):
        t.explain(w, (0,))


def test_a_trace_serves_once():
    recorder = lightwell.trace()
    with recorder:
        torch.ones(2).sum()
    with pytest.raises(TraceError, match="used before"), recorder:
        pass


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_forgotten_is_found():
    a, b = weight(3, seed=1), weight(3, seed=2)
    with lightwell.trace() as t:
        Forgets.apply(a, b).sum().backward()
    assert verdicts(t)["Forgets"] == "disagree"


@pytest.mark.parametrize("how", ["detached", "not asked for"])
def test_a_gradient_that_nobody_wants_may_be_none(how):
    a, b = weight(3, seed=1), weight(3, seed=2)
    with lightwell.trace() as t:
        z = Forgets.apply(a, b.detach() if how == "detached" else b).sum()
        z.backward() if how == "detached" else torch.autograd.grad(z, [a])
    assert verdicts(t)["Forgets"] == "agree"


@pytest.mark.parametrize("seed", range(5))
def test_autocast_is_not_accused(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = numbers(5, 3, seed=seed)
    with lightwell.trace() as t, torch.autocast("cpu", torch.bfloat16):
        net(x).float().square().mean().backward()
    assert t.verify().agree
    assert t.explain(net[0].weight, (0, 0)).agree


def test_complex_numbers_inside_are_refused_in_a_sentence():
    w = weight(8)
    with lightwell.trace() as t:
        torch.fft.rfft(w).abs().sum().backward()
    assert t.verify().agree  # nothing disagrees: it is not checkable
    with pytest.raises(TraceError, match="complex"):
        t.explain(w, (0,))


@pytest.mark.parametrize("write", ["mul_", "div_", "pow_"])
def test_a_write_that_destroys_what_backward_needs_is_explained(write):
    w, z = weight(3, 3, seed=1), (numbers(4, 3, seed=2).abs() + 0.5).requires_grad_()
    with lightwell.trace() as t:
        h = numbers(4, 3).abs() @ w.abs()
        getattr(h, write)(z)
        h.sum().backward()
    rows = t.verify()
    assert rows.agree
    assert "not checkable" not in {row.verdict for row in rows.rows if row.operation == write}
    assert t.explain(z, (0, 0)).agree


def test_a_part_that_is_changed_in_place():
    w, x = weight(3, 3), numbers(4, 3)
    with lightwell.trace() as t:
        h = x @ w
        h[:, 0] *= 2
        out = torch.zeros(4, 3)
        out[1:] = h[1:]
        out.square().sum().backward()
    assert t.verify().agree


def test_a_backward_that_cannot_be_differentiated_is_refused_in_a_sentence():
    w = weight(3)
    with lightwell.trace() as t:
        OnceOnly.apply(w).square().sum().backward()
    assert t.verify().agree
    with pytest.raises(TraceError, match="once_differentiable"):
        t.explain(w, (1,), depth=2)


def test_a_parameter_that_shares_memory_with_another_has_a_gradient_of_its_own():
    w = weight(3)
    other = nn.Parameter(w.data)
    with lightwell.trace() as t:
        (w * 2 + other * 3).sum().backward()
    assert t.verify().agree
    assert t.explain(other, (0,)).value == pytest.approx(3.0)


def test_infinities_end_in_a_verdict():
    with lightwell.trace() as t:
        (numbers(4, 3) @ weight(3, 3)).mul(1e30).exp().sum().backward()
    assert t.verify().rows


def test_a_gradient_that_was_clipped_is_explained_as_it_was():
    w = weight(3)
    with lightwell.trace() as t:
        (w * 20).square().sum().backward()
        torch.nn.utils.clip_grad_norm_([w], 0.1)
    found = t.explain(w, (0,))
    assert found.agree
    assert found.value == pytest.approx(800 * float(w.detach()[0]))


def test_norms_of_what_is_normalised_already():
    x = weight(4, 16)
    with lightwell.trace() as t:
        F.layer_norm(F.layer_norm(x, (16,)), (16,)).square().mean().backward()
    assert "not checkable" not in verdicts(t).values()


class Similar(nn.Module):
    """Cosine similarity, whose norms are clamped where autograd does not look."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return F.cosine_similarity(self.layer(x), x, dim=-1)


class Recurrent(nn.Module):
    """A GRU, whose pieces of one storage are written to one by one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(4, 5, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


class Penalised(nn.Module):
    """A layer and how steep it is: a derivative of a derivative, which reads what the first one saved."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.layer(x).tanh().sum(), x, create_graph=True)
        return slope


@pytest.mark.parametrize("module", [Similar, Recurrent, Penalised, lambda: nn.Sequential(nn.Linear(4, 4), nn.RReLU())])
def test_writes_that_autograd_does_not_follow_are_not_accused(module):
    torch.manual_seed(0)
    net = module()
    with lightwell.trace() as t:
        net(numbers(2, 3, 4)).square().mean().backward()
    verification = t.verify()
    last = max(row.backward_pass for row in verification.rows)
    assert {row.verdict for row in verification.rows if row.backward_pass == last} == {"agree"}
    assert verification.rows[-1].kind == "whole function"


def test_a_gradient_that_is_anothers_by_convention_is_left_to_the_whole_function():
    scores, text, lengths = weight(12, 2, 6), torch.tensor([[1, 2, 3], [5, 4, 1]]), torch.tensor([12, 12])
    with lightwell.trace() as t:
        F.ctc_loss(scores.log_softmax(-1), text, lengths, torch.tensor([3, 3])).backward()
    found = verdicts(t)
    assert found.pop("_ctc_loss") == "not checkable"
    assert set(found.values()) == {"agree"}


def test_gradients_of_matrices_that_stay_symmetric_are_left_to_the_whole_function():
    w = weight(4, 4)
    with lightwell.trace() as t:
        torch.linalg.cholesky(w @ w.T + torch.eye(4)).sum().backward()
    found = verdicts(t)
    assert found.pop("linalg_cholesky_ex") == "not checkable"
    assert set(found.values()) == {"agree"}


def test_a_product_with_factors_before_it_is_not_told_as_a_plain_one():
    b, x, w = weight(4), numbers(3, 5), weight(5, 4)
    for options, plain in (({}, True), ({"alpha": 3}, False), ({"beta": 0.5}, False)):
        with lightwell.trace() as t:
            torch.addmm(b, x, w, **options).square().sum().backward()
        assert ("x transposed" in str(t.explain(w))) is plain
        assert ("over its rows" in str(t.explain(b))) is plain


def test_a_product_with_a_part_of_a_weight_is_not_told_as_one_with_all_of_it():
    x, w = numbers(3, 5), weight(5, 4)
    with lightwell.trace() as t:
        (x @ w[:, :3]).square().sum().backward()
    assert "x transposed" not in str(t.explain(w))
    assert t.explain(w).agree


# --- what is saved ----------------------------------------------------------------------------------------------------


def test_whole_numbers_are_saved_exactly_and_may_be_added_up(tmp_path):
    large = 2**62 + 1
    with lightwell.trace() as t:
        (torch.tensor([1, 1, 0]).cumsum(0) - 1) * torch.tensor(large)
    t.save(tmp_path / "t.json")
    assert str(large) in (tmp_path / "t.json").read_text()


def test_a_title_with_holes_is_a_title(tmp_path):
    with lightwell.trace() as t:
        torch.ones(2).sum()
    t.save(tmp_path / "t.html", title="{{data}}")
    page = (tmp_path / "t.html").read_text()
    assert "<h1>{{data}}</h1>" in page.replace("\n", "") or "{{data}}" in page


def test_a_folder_in_the_way_of_a_page(tmp_path):
    (tmp_path / "t.html").mkdir()
    with lightwell.trace() as t:
        torch.ones(2).sum()
    with pytest.raises(lightwell.UserError, match="a folder of that name"):
        t.save(tmp_path / "t.html")
