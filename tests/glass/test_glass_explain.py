"""A gradient is explained by a sum that closes, worked out without asking autograd for it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_glass_capture import batch, small_model, step
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lightwell
from lightwell.glass.capture import trace
from lightwell.glass.explain import Explanation
from lightwell.glass.figures import figure
from lightwell.glass.graph import Graph
from lightwell.glass.result import Trace


def neuron() -> tuple[Trace, Tensor, Tensor]:
    x, y = torch.tensor(1.1), torch.tensor(1.0)
    w, b = torch.tensor(2.2, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    with trace() as t:
        z = w * x + b
        a = torch.sigmoid(z)
        loss = F.binary_cross_entropy(a, y)
        loss.backward()
    return t, w, b


def close(e: Explanation, expected: Tensor | float) -> bool:
    difference = torch.as_tensor(e.value, dtype=torch.float64) - torch.as_tensor(expected, dtype=torch.float64)
    return float(difference.abs().max()) <= e.bound


# --- one number -----------------------------------------------------------------------------------------------------


def test_one_neuron_is_printed_link_by_link() -> None:
    t, w, b = neuron()
    lines = str(t.explain(w)).splitlines()
    assert lines[0] == "forward: w = 2.2, x = 1.1, b = 0, z = 2.42, a = 0.9183, y = 1, L = 0.0852"
    assert lines[1] == "dL/dw = dL/da x da/dz x dz/dw = -1.0889 x 0.0750 x 1.1 = -0.0898"
    assert lines[2].startswith("  dL/da: binary_cross_entropy test_glass_explain.py:")
    assert lines[-2] == (
        "by hand -0.0898 (our rule); autograd -0.0898; finite differences -0.0898 (of the whole function)"
    )
    assert lines[-1].startswith("agree: ")
    bias = str(t.explain(b)).splitlines()
    assert bias[1] == "dL/db = dL/da x da/dz x dz/db = -1.0889 x 0.0750 x 1 = -0.0817"


def test_the_neurons_numbers() -> None:
    t, w, b = neuron()
    slope = 1 / (1 + math.exp(-2.42)) - 1  # dL/dz of a sigmoid under cross entropy, target 1
    assert t.explain(w).value == pytest.approx(1.1 * slope, rel=1e-6)
    assert t.explain(b).value == pytest.approx(slope, rel=1e-6)
    e = t.explain(w)
    assert [link.text for link in e.chains[0].links] == ["dL/da", "da/dz", "dz/dw"]
    assert e.chains[0].value == pytest.approx(e.value, rel=1e-6)
    assert e.differences == pytest.approx(e.value, rel=1e-6)
    assert e.autograd == w.grad.item()
    assert e.agree


def test_the_value_does_not_come_from_grad() -> None:
    t, w, _ = neuron()
    before = t.explain(w)
    w.grad.mul_(2)
    after = t.explain(w)
    assert after.value == before.value
    assert after.residual == pytest.approx(abs(before.value), rel=1e-6)
    assert not after.agree
    assert "DISAGREE" in str(after)
    w.grad = None
    gone = t.explain(w)
    assert gone.value == before.value
    assert gone.residual is None
    assert "gone" in str(gone)


def test_a_number_used_twice_has_two_paths() -> None:
    w = torch.tensor(3.0, requires_grad=True)
    with trace() as t:
        square = w * w
        loss = square + w
        loss.backward()
    e = t.explain(w)
    assert e.value == 7.0
    assert sorted(c.value for c in e.chains) == [1.0, 3.0, 3.0]
    assert "dL/dw = 3 + 3 + 1 = 7" in str(e) or "dL/dw = 1 + 3 + 3 = 7" in str(e)


def test_names_come_from_the_source_where_variables_are_gone() -> None:
    def forward(w: Tensor) -> Tensor:
        inner = w * 2
        return inner.exp()

    w = torch.tensor(0.5, requires_grad=True)
    with trace() as t:
        forward(w).backward()
    assert [link.text for link in t.explain(w).chains[0].links] == ["dL/dinner", "dinner/dw"]


def test_a_repeated_name_is_numbered() -> None:
    w = torch.tensor(0.5, requires_grad=True)
    with trace() as t:
        x = w * 2
        x = x.sin()
        x = x * 3
        x.backward()
    assert [link.text for link in t.explain(w).chains[0].links] == ["dL/dx_2", "dx_2/dx_1", "dx_1/dw"]


def test_a_loss_that_begins_with_another_gradient() -> None:
    w = torch.tensor(0.5, requires_grad=True)
    with trace() as t:
        (w * 3).backward(torch.tensor(10.0))
    assert t.explain(w).value == 30.0


# 1 - tanh(6)^2 has lost four digits in float32, and so has 1e-41: the sides would differ, both right.
with_digits = st.floats(-2, 2, width=32).map(lambda value: value if abs(value) > 1e-20 else 0.0)


@settings(max_examples=25, deadline=None)
@given(
    x=with_digits,
    w=with_digits,
    kind=st.sampled_from(["sigmoid", "tanh", "sin", "softplus", "gelu"]),
)
def test_any_scalar_chain_closes(x: float, w: float, kind: str) -> None:
    a, b = torch.tensor(x), torch.tensor(w, requires_grad=True)
    function = getattr(torch, kind, None) or getattr(F, kind)
    with trace() as t:
        loss = (function(a * b) - 1) ** 2
        loss.backward()
    e = t.explain(b)
    assert close(e, b.grad)
    assert e.chains[0].value == pytest.approx(e.value, rel=1e-4, abs=1e-7)
    assert e.differences == pytest.approx(e.value, rel=1e-4, abs=1e-6)


# --- tensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "modern"])
@pytest.mark.parametrize("open_attention", [False, True])
def test_every_parameter_of_a_gpt(family: str, open_attention: bool) -> None:
    model = small_model(family, n_layers=1)
    with trace(open_attention=open_attention) as t:
        step(model)
    for name, p in model.named_parameters():
        whole = t.explain(p)
        assert whole.agree, (name, whole.residual, whole.bound)
        assert whole.value.dtype == torch.float64
        assert close(whole, p.grad), name
        assert whole.bound <= 1e-4 * float(p.grad.abs().max()), name
        index = tuple(int(i) for i in torch.unravel_index(p.grad.abs().argmax(), p.shape))
        one = t.explain(p, index)
        assert one.agree, (name, one.residual, one.bound)
        assert one.value == pytest.approx(float(whole.value[index]), rel=1e-5)
        assert one.bound <= 1e-4 * abs(one.value)


def test_terms_are_upstream_times_local_and_their_sum_closes() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 3), torch.randn(6, 4)
    with trace() as t:
        y = linear(x)
        loss = (y**2).sum()
        loss.backward()
    e = t.explain(linear.weight, (2, 1), top=3)
    upstream = 2 * y.detach()[:, 2].double()
    expected = sorted((upstream * x[:, 1].double()).tolist(), key=abs, reverse=True)
    assert [term.value for term in e.terms] == pytest.approx(expected[:3], rel=1e-6)
    assert [term.local for term in e.terms] == pytest.approx([float(x[t_.place[0], 1]) for t_ in e.terms])
    assert e.rest[0] == 3
    assert e.rest[1] + sum(term.value for term in e.terms) == pytest.approx(e.value, rel=1e-12)
    assert e.value == pytest.approx(float(linear.weight.grad[2, 1]), rel=1e-6)
    assert "and 3 more terms" in str(e)


def test_depth_follows_the_largest_terms() -> None:
    torch.manual_seed(0)
    first, second, x = nn.Linear(3, 3), nn.Linear(3, 2), torch.randn(2, 3)
    with trace() as t:
        second(first(x).tanh()).square().sum().backward()
    e = t.explain(first.weight, (0, 0), depth=4)
    term = e.terms[0]
    assert [term.operation.name, term.inner[0].operation.name] == ["addmm", "tanh"]
    assert term.upstream == pytest.approx(sum(inner.value for inner in term.inner), rel=1e-6)
    deeper = term.inner[0].inner
    assert {inner.operation.name for inner in deeper} == {"addmm"}
    assert deeper[0].inner[0].operation.name == "pow"
    assert t.explain(first.weight, (0, 0)).terms[0].inner == []
    assert str(e).count("tanh") >= 2


def test_a_matrix_is_said_to_be_the_product_that_it_is() -> None:
    linear, x = nn.Linear(4, 3), torch.randn(6, 4)
    with trace() as t:
        linear(x).square().sum().backward()
    assert "dL/dweight (3 x 4) is\n  dL/dz transposed (3 x 6) times x (6 x 4)" in str(t.explain(linear.weight))
    assert "the sum of dL/dz (6 x 3) over its rows" in str(t.explain(linear.bias))


def test_an_activation_can_be_explained() -> None:
    x = torch.tensor([0.3, -0.7], requires_grad=True)
    with trace() as t:
        h = x.tanh()
        (h * h).sum().backward()
    e = t.explain(h, (1,))
    assert e.value == pytest.approx(2 * h[1].item(), rel=1e-6)
    assert e.autograd == pytest.approx(e.value, rel=1e-6)
    assert [term.operation.name for term in e.terms] == ["mul", "mul"]


def test_an_expanded_element_has_a_term_for_each_place() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with trace() as t:
        (x.expand(3, 2) * torch.arange(6.0).view(3, 2)).sum().backward()
    e = t.explain(x, 0)
    assert e.value == 0.0 + 2.0 + 4.0
    assert e.readings[0].operation.name == "expand"
    assert e.readings[0].count == 3


# --- paths through a network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "modern"])
def test_paths_through_the_residual_stream(family: str) -> None:
    model = small_model(family).double()
    with trace() as t:
        step(model)
    index = (int(batch()[0][0, 0]), 3)
    e = t.explain(model.tok_emb.weight, index)
    labels = [" -> ".join(way.labels) for way in e.ways]
    branches = [f"blocks.{n}.{part} -> tok_emb" for n in (0, 1) for part in ("attn", "mlp")]
    assert labels[:5] == [*branches, "final_norm -> tok_emb"]
    assert len(labels) == 6
    assert sum(way.value for way in e.ways) == pytest.approx(e.value, rel=1e-9)
    text = str(e)
    assert "path by path, from the loss down:" in text
    assert t.explain(model.blocks[1].mlp.down.weight, (0, 0)).ways == []
    middle = t.explain(model.blocks[0].attn.out.weight, (2, 2))
    assert [way.labels[0] for way in middle.ways] == ["blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp", "final_norm"]
    assert sum(way.value for way in middle.ways) == pytest.approx(middle.value, rel=1e-9)


def test_each_way_is_what_cutting_the_others_leaves() -> None:
    """The share of the MLP in a gradient is the difference that detaching its input from the stream makes."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.cut = False

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.first(x).tanh()
            return x + self.second(x.detach() if self.cut else x).tanh()

    torch.manual_seed(0)
    model, x = Residual().double(), torch.randn(4, 3, dtype=torch.float64)
    with trace() as t:
        model(x).square().sum().backward()
    e = t.explain(model.first.weight, (1, 2))
    full = model.first.weight.grad[1, 2].item()
    model.zero_grad()
    model.cut = True
    model(x).square().sum().backward()
    straight = model.first.weight.grad[1, 2].item()
    ways = {way.labels[0]: way.value for way in e.ways}
    (through,) = [value for label, value in ways.items() if "second" in label or "tanh" in label]
    assert through == pytest.approx(full - straight, rel=1e-9)
    assert sum(ways.values()) == pytest.approx(full, rel=1e-9)


# --- accumulated, repeated, in place --------------------------------------------------------------------------------


def test_accumulated_gradients_are_all_in_it() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    w.grad = torch.tensor([100.0, 200.0])
    with trace() as t:
        for x in (3.0, 5.0):
            (w * x).sum().backward()
    e = t.explain(w, 1)
    assert e.value == 208.0
    assert e.before == 200.0
    assert [r.value for r in e.readings] == [3.0, 5.0]
    assert e.agree
    assert "which was in .grad before" in str(e)
    assert t.explain(w).value.tolist() == [108.0, 208.0]
    assert t.explain(w, 1, backward=0).value == 3.0


def test_training_steps_inside_a_trace() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    with trace() as t:
        for _ in range(2):
            optimizer.zero_grad()
            (w**2).sum().backward()
            optimizer.step()
    e = t.explain(w, 0)
    assert e.value == pytest.approx(2 * 0.8, rel=1e-6)
    assert e.agree
    assert t.explain(w, 0, backward=0).value == pytest.approx(2.0)


def test_in_place_operations() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with trace() as t:
        y = x * 3
        y += x
        y.mul_(2)
        y.sum().backward()
    e = t.explain(x, 0)
    assert e.value == 8.0
    assert e.agree


def test_a_write_through_a_view() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    with trace() as t:
        y = x * 2
        y[1:].mul_(5)
        (y * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    for i, expected in enumerate([2.0, 100.0, 1000.0]):
        e = t.explain(x, i)
        assert e.value == expected
        assert e.agree


def test_higher_order_gradients() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    with trace() as t:
        (slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        slope.sum().backward()
    assert t.explain(x, backward=0).value == pytest.approx(12.0)
    e = t.explain(x)
    assert e.value == pytest.approx(12.0)
    assert e.agree


def test_checkpointed_parts() -> None:
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(2, 3)
    with trace() as t:
        checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert t.explain(layer[0].weight, (1, 1)).agree


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * 3 * x**2


def test_custom_functions_by_their_own_backward() -> None:
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    with trace() as t:
        Cubed.apply(x).sum().backward()
    e = t.explain(x, 1)
    assert e.value == 27.0
    assert e.readings[0].source == "own backward"
    assert "own backward" in str(e)


def test_operations_without_a_rule() -> None:
    x = torch.tensor([[2.0, 1.0], [0.5, 3.0]], requires_grad=True)
    with trace() as t:
        torch.linalg.matrix_exp(x).sum().backward()
    (operation,) = {r.operation for r in t.explain(x, (0, 1)).readings}
    e = t.explain(x, (0, 1))
    assert e.agree
    if Graph(t, 0).local(operation).rule is None:
        assert e.readings[0].source == "autograd"


# --- as data --------------------------------------------------------------------------------------------------------


def test_as_plain_data() -> None:
    model = small_model(n_layers=1)
    with trace() as t:
        step(model)
    e = t.explain(model.tok_emb.weight, (3, 3), depth=2)
    data = json.loads(json.dumps(e.to_dict()))
    assert data["value"] == e.value
    assert data["tensor"] == "tok_emb.weight"
    assert data["index"] == [3, 3]
    assert len(data["terms"]) == len(e.terms)
    assert data["terms"][0]["upstream"] * data["terms"][0]["local"] == pytest.approx(data["terms"][0]["value"])
    assert [way["labels"] for way in data["ways"]] == [way.labels for way in e.ways]
    whole = json.loads(json.dumps(t.explain(model.tok_emb.weight).to_dict()))
    assert torch.tensor(whole["value"]).shape == model.tok_emb.weight.shape
    t, w, _ = neuron()
    chain = json.loads(json.dumps(t.explain(w).to_dict()))["chains"][0]
    assert [link["name"] for link in chain] == ["dL/da", "da/dz", "dz/dw"]


def test_figures() -> None:
    assert [figure(x) for x in (1.1, float(torch.tensor(1.1)), 2.0, -0.0898263, 0.0749, 0.00123456, 1.5e-7, 0.0)] == [
        "1.1",
        "1.1",
        "2",
        "-0.0898",
        "0.0749",
        "0.001235",
        "1.500e-07",
        "0",
    ]
    assert figure(math.inf) == "inf"


# --- bad questions --------------------------------------------------------------------------------------------------


def refused(t: Trace, *args: object, **kwargs: object) -> str:
    with pytest.raises(lightwell.UserError) as caught:
        t.explain(*args, **kwargs)  # type: ignore[arg-type]
    return str(caught.value)


def test_questions_that_have_no_answer() -> None:
    x, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    plain = torch.ones(2)
    with trace() as t:
        loss = (x * plain).sum()
        dead_end = unused * 2
        cut = (x * 2).detach()
        loss.backward()
    assert "got no path from mul" in refused(t, unused)
    assert "a leaf that asks for none" in refused(t, plain)
    assert "made by detach" in refused(t, cut)
    assert "expected a tensor that the traced step used" in refused(t, torch.zeros(2))
    assert "where backward began" in refused(t, loss)
    assert "no operation read" in refused(t, dead_end)
    assert "an index of 1 numbers for a tensor of shape [2], got (0, 1)" in refused(t, x, (0, 1))
    assert "an index inside the shape [2], got (5,)" in refused(t, x, 5)
    assert "depth and top" in refused(t, x, 0, depth=0)
    assert "one of the backward passes [0], got 3" in refused(t, x, 0, backward=3)
    assert "a language out of" in refused(t, x, 0, language="xx")
    assert t.explain(x, -1).index == (1,)


def test_no_backward_and_failed_backward() -> None:
    x = torch.ones(2, requires_grad=True)
    with trace() as t:
        (x * 2).sum()
    assert "expected a backward pass in the traced block, got none" in refused(t, x)
    with pytest.raises(RuntimeError), trace() as t:
        (x * 2).backward()
    assert "scalar" in refused(t, x) or "got none" in refused(t, x)
    with torch.no_grad(), trace() as t:
        y = x * 2
    assert "got none" in refused(t, y)


def test_values_written_over_are_refused() -> None:
    x, w = torch.ones(2), torch.ones(2, requires_grad=True)
    with trace() as t:
        (w * x).sum().backward()
    x.add_(1)
    assert "written over in place since then" in refused(t, w, 0)


def test_a_snapshot_beyond_its_memory_says_so() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(30, 30), torch.randn(50, 30)
    with trace("snapshot", memory_limit_bytes=100) as t:
        layer(x).square().sum().backward()
    assert "beyond the trace's memory limit" in refused(t, layer.weight, (0, 0))
