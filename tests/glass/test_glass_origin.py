"""Where a NaN or an infinity was born: the producer is named with its line and its numbers, carriers are not."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightwell
from lightwell.errors import TraceError
from lightwell.model.build import GPT


def line_of(function, text):
    """The line of a function's source that holds this text."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_a_finite_step_has_none():
    w = torch.ones(3, requires_grad=True)
    with lightwell.trace() as t:
        w.exp().sum().backward()
    found = t.origins()
    assert found.first is None
    assert found.births == []
    assert str(found) == "every number that the trace kept is finite"


def test_forward_the_producer_is_named_and_carriers_are_counted():
    x = torch.tensor([[1.0, 0.0], [4.0, 2.0]], requires_grad=True)
    with lightwell.trace() as t:
        y = x * 2
        z = y.log()  # here
        ((z + 1) * 3).sum()
    birth = t.origins().first
    assert (birth.stage, birth.operation, birth.kinds) == ("forward", "log", ["-inf"])
    assert (birth.count, birth.of, birth.place) == (1, 4, [0, 1])
    assert birth.line == line_of(test_forward_the_producer_is_named_and_carriers_are_counted, "# here")
    assert birth.file == __file__
    assert birth.made_of == {"y": [0.0]}
    assert birth.carriers == 3
    assert "log" in str(t.origins())
    assert f":{birth.line}" in str(t.origins())


def test_nan_made_of_infinities_is_a_new_birth():
    x = torch.tensor([math.inf, 1.0], requires_grad=True)
    with lightwell.trace() as t:
        (x - x.detach()).sum()
    birth = t.origins().first
    assert (birth.operation, birth.kinds) == ("sub", ["nan"])


def test_data_that_came_with_nan():
    x = torch.tensor([1.0, math.nan])
    w = torch.ones(2, requires_grad=True)
    with lightwell.trace() as t:
        (w * x).sum().backward()
    birth = t.origins().first
    assert (birth.stage, birth.operation, birth.kinds) == ("outside", "x", ["nan"])


def test_backward_a_derivative_that_is_infinite_at_a_finite_value():
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    with lightwell.trace() as t:
        y = (3 * x).sqrt()  # here
        y.sum().backward()
    found = t.origins()
    birth = found.first
    assert (birth.stage, birth.operation, birth.kinds, birth.place) == ("backward", "sqrt", ["inf"], [0])
    assert birth.line == line_of(test_backward_a_derivative_that_is_infinite_at_a_finite_value, "# here")
    assert birth.made_of == {"input 0": [0.0]}
    assert birth.carriers == 1


def test_backward_zero_times_infinity_behind_where():
    """The well-known trap: a branch that is not taken gives NaN by its gradient."""
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    with lightwell.trace() as t:
        torch.where(x > 0, x.sqrt(), 0.0).sum().backward()
    assert x.grad.isnan().tolist() == [True, False]
    birth = t.origins().first
    assert (birth.stage, birth.operation, birth.kinds) == ("backward", "sqrt", ["nan"])


def test_optimizer_an_update_that_overflows():
    w = nn.Parameter(torch.tensor([1.0, 3e38]))
    optimizer = torch.optim.SGD([w], lr=1e38)
    with lightwell.trace() as t:
        (-4 * w).sum().backward()
        optimizer.step()
    assert w.isinf().tolist() == [True, True]
    birth = t.origins().births[-1]
    assert birth.stage == "optimizer"
    assert birth.kinds == ["inf"]
    assert birth.file == __file__
    assert "optimizer" in str(t.origins())


@pytest.mark.parametrize("fused", [True, False])
def test_masks_are_meant(fused):
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    mask = torch.full((4, 4), -torch.inf).triu(1)
    with lightwell.trace() as t:
        if fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = (q @ k.mT + mask).softmax(-1)
            y = (q @ k.mT).masked_fill(mask < 0, -torch.inf).softmax(-1) @ v + scores @ v
        y.sum().backward()
    assert t.origins().first is None


def test_a_row_that_is_masked_everywhere_is_not_meant():
    x = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with lightwell.trace() as t:
        x.masked_fill(mask, -torch.inf).softmax(-1).sum()
    birth = t.origins().first
    assert (birth.operation.strip("_"), birth.kinds, birth.place[0]) == ("softmax", ["nan"], 0)


@pytest.mark.parametrize("config", [lightwell.GPTConfig, lightwell.ModernConfig])
@pytest.mark.parametrize("open_attention", [True, False])
def test_in_a_gpt_the_layer_is_named_and_its_masks_are_not(config, open_attention):
    model = GPT(config(vocab_size=11, context_length=8, emb_dim=8, n_heads=2, n_layers=3), torch.Generator())
    ids = torch.randint(0, 11, (2, 6))

    def step():
        with lightwell.trace(open_attention=open_attention) as t:
            loss, n = model(ids, ids)
            (loss / n).backward()
        return t.origins()

    assert step().first is None
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 2] = 3e38
        model.blocks[1].mlp.up.weight[3, 3] = -3e38
        model.blocks[1].norm2.weight.fill_(1e3)
    birth = step().first
    assert birth.stage == "forward"
    assert birth.module == "blocks.1.mlp.up"


def test_as_plain_data():
    x = torch.tensor([0.0], requires_grad=True)
    with lightwell.trace() as t:
        x.log().sum().backward()
    data = t.origins().to_dict()
    assert data["births"][0]["operation"] == "log"
    assert data["unknown"] == 0
    assert data["text"] == str(t.origins())


def test_a_snapshot_without_numbers_still_knows():
    x = torch.zeros(100, 100, requires_grad=True)
    with lightwell.trace("snapshot", memory_limit_bytes=10) as t:
        y = x.log()  # here
        (y * 2).sum()
        del y
    birth = t.origins().first
    assert (birth.operation, birth.count) == ("log", 10_000)


def test_an_open_trace_is_refused():
    with lightwell.trace() as t, pytest.raises(TraceError, match="closed"):
        t.origins()


def test_memory_that_nobody_has_written_to_is_not_accused():
    like = torch.ones(64)
    with lightwell.trace() as t:
        for _ in range(8):
            x = torch.empty_like(like)
            x.fill_(1.0)
    for operation in t.operations:
        if operation.name == "empty_like":
            operation.outputs[0]._content.fill_(math.nan)  # what may have been there
            operation.outputs[0]._version = None
    assert t.origins().first is None
