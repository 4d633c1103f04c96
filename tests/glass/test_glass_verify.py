"""Three ways to every gradient: right ones agree, each wrong one is found and named with its line."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightwell
from lightwell.errors import TraceError
from lightwell.model.build import GPT

SIZES = {"vocab_size": 19, "context_length": 6, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
FAMILIES = {
    "gpt2": lightwell.GPTConfig(**SIZES, qkv_bias=True),
    "gpt2 with dropout": lightwell.GPTConfig(**SIZES, drop_rate=0.2),
    "modern": lightwell.ModernConfig(**SIZES, n_kv_heads=1),
}
NO_ARITHMETIC = {"AccumulateGrad"}


def loss_of(model):
    ids = torch.randint(0, SIZES["vocab_size"], (2, 5), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    loss, n = model(ids[:, :-1], ids[:, 1:])
    return loss / n


def model_of(family):
    return GPT(FAMILIES[family], torch.Generator().manual_seed(0)).train()


def nodes_below(root):
    """The nodes of autograd's graph, each once, from the loss down."""
    found, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.append(node)
            waiting += [below for below, _ in node.next_functions]
    return found


def kinds_of_nodes(family):
    names = [node.name() for node in nodes_below(loss_of(model_of(family)).grad_fn)]
    return sorted({name for name in names if name.rsplit("::")[-1] not in NO_ARITHMETIC})


def traced_with_a_wrong(family, name, change):
    """A step in which one node of this name gives gradients changed by `change`."""
    model = model_of(family)
    with lightwell.trace() as t:
        loss = loss_of(model)
        node = next(node for node in nodes_below(loss.grad_fn) if node.name() == name)
        node.register_hook(lambda given, got: tuple(None if g is None else change(g) for g in given))
        loss.backward()
    return t, next(o for o in t.operations if o.sequence == node._sequence_nr())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gradient_of_both_families_agrees(family):
    model = model_of(family)
    with lightwell.trace() as t:
        loss_of(model).backward()
    v = t.verify()
    assert v.agree
    assert v.count("agree") == len(v.rows) > 40
    assert {row.kind for row in v.rows} == {"operation", "sum", "whole function"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", ["gpt2 with dropout", "modern"])
def test_every_operation_mutated_in_turn_is_found_and_named(family):
    kinds = kinds_of_nodes(family)
    assert len(kinds) >= 20
    for name in kinds:
        t, operation = traced_with_a_wrong(family, name, lambda g: g * 1.01)
        v = t.verify(whole=False)
        assert not v.agree, name
        assert [row for row in v.rows if row.verdict == "disagree"] == [v.worst], name
        assert (v.worst.operation_id, v.worst.operation) == (operation.id, operation.name)
        assert (v.worst.line, v.worst.file) == (operation.line, operation.file)
        assert v.worst.line > 0
        assert v.worst.error == pytest.approx(0.01, rel=0.02)
        assert operation.name in str(v)


@pytest.mark.parametrize(
    "change", [torch.neg, torch.zeros_like, lambda g: g.flip(-1)], ids=["sign", "nothing", "order"]
)
def test_other_mutations_are_found_as_well(change):
    t, operation = traced_with_a_wrong("modern", "SiluBackward0", change)
    assert t.verify(whole=False).worst.operation_id == operation.id
    assert not t.verify(differences=False, whole=False).agree


class Doubled(torch.autograd.Function):
    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * Doubled.factor * gradient


def test_a_wrong_custom_function_is_found_with_its_line(monkeypatch):
    x = torch.randn(5, requires_grad=True, generator=torch.Generator().manual_seed(0))

    def step():
        with lightwell.trace() as t:
            y = Doubled.apply(x).exp()
            y.sum().backward()
        return t.verify()

    assert step().agree
    monkeypatch.setattr(Doubled, "factor", 1.01)
    v = step()
    assert not v.agree
    assert v.worst.operation == "Doubled"
    line = inspect.getsourcelines(test_a_wrong_custom_function_is_found_with_its_line)[1] + 5
    assert (v.worst.line, v.worst.file) == (line, __file__)
    whole = next(row for row in v.rows if row.kind == "whole function")
    assert whole.verdict == "disagree"
    assert "DISAGREE" in str(v)
    assert "Doubled" in str(v)


def test_a_hook_that_changes_a_sum_is_found():
    x = torch.randn(4, generator=torch.Generator().manual_seed(0))
    w = torch.randn(4, requires_grad=True, generator=torch.Generator().manual_seed(1))
    with lightwell.trace() as t:
        h = w * x
        h.register_hook(lambda g: g * 1.01)
        (h.sin() + h.cos()).sum().backward()
    v = t.verify()
    assert not v.agree
    assert any(row.kind == "sum" and row.verdict == "disagree" for row in v.rows)


def test_probabilities_at_the_end_of_their_range_are_checked():
    """binary_cross_entropy refuses numbers outside of 0 to 1; the target needs no gradient and stays where it is."""
    x = torch.tensor([1.1, -0.3, 0.7])
    w = torch.tensor(2.2, requires_grad=True)
    for target in (torch.tensor([1.0, 0.0, 0.25]), torch.ones(3)):
        with lightwell.trace() as t:
            F.binary_cross_entropy(torch.sigmoid(w * x), target).backward()
        v = t.verify()
        row = next(row for row in v.rows if row.operation == "binary_cross_entropy")
        assert row.verdict == "agree"
        assert row.differences is not None
        assert v.agree
    with lightwell.trace() as t:
        F.binary_cross_entropy(torch.sigmoid(w * 40.0), torch.tensor(1.0)).backward()
    row = next(row for row in t.verify().rows if row.operation == "binary_cross_entropy")
    assert row.verdict == "not checkable"  # the probability is exactly 1: there is only one side
    assert "kink" in row.reason


def test_what_cannot_be_checked_is_named_with_the_reason():
    class Restless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + torch.rand(())

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    x = torch.tensor([0.0, 0.0], requires_grad=True)
    with lightwell.trace() as t:
        Restless.apply(x.relu()).sum().backward()
    rows = {row.operation: row for row in t.verify(whole=False).rows}
    assert rows["relu"].verdict == "not checkable"
    assert "kink" in rows["relu"].reason
    assert rows["Restless"].verdict == "not checkable"
    assert "randomness" in rows["Restless"].reason

    w = torch.tensor([1.0, 2.0], dtype=torch.complex64, requires_grad=True)
    with lightwell.trace() as t:
        (w * w).abs().sum().backward()
    assert {row.verdict for row in t.verify(whole=False).rows if row.operation == "mul"} == {"not checkable"}


def test_a_kink_beside_smooth_elements_leaves_those_checked():
    x = torch.tensor([0.0, 1.0, -2.0], requires_grad=True)
    with lightwell.trace() as t:
        (x.relu() * 3).sum().backward()
    row = next(row for row in t.verify(whole=False).rows if row.operation == "relu")
    assert row.verdict == "agree"
    assert row.reason.startswith("1 output elements")


def test_without_time_nothing_was_run_and_it_is_said():
    model = model_of("modern")
    with lightwell.trace() as t:
        loss_of(model).backward()
    v = t.verify(seconds=0)
    assert v.count("not run") == len(v.rows)
    assert v.agree
    assert "time" in v.rows[0].reason


def test_a_verification_as_plain_data_and_as_text():
    model = nn.Linear(3, 2)
    with lightwell.trace() as t:
        model(torch.ones(4, 3)).square().mean().backward()
    v = t.verify()
    data = v.to_dict()
    assert data["agree"] is True
    assert sum(data["counts"].values()) == len(data["rows"]) == len(v.rows)
    assert set(data["rows"][0]) >= {"operation", "module", "line", "verdict", "error", "noise_floor"}
    assert data["worst"]["error"] == v.worst.error
    assert str(v).splitlines()[0].startswith(f"{len(v.rows)} agree, 0 disagree")


def test_no_backward_pass_is_the_users_mistake():
    with lightwell.trace() as t:
        torch.ones(2, requires_grad=True).sum()
    with pytest.raises(TraceError, match="expected a backward pass"):
        t.verify()


def test_progress_is_told():
    told = []
    w = torch.ones(2, requires_grad=True)
    with lightwell.trace() as t:
        (w * 2).sum().backward()
    t.verify(progress=lambda done, total, what: told.append((done, total, what)))
    assert told[0][:2] == (0, len(told))
    assert "mul" in {what for *_, what in told}
