"""Backpropagation by hand: every number right, and against PyTorch to the last digit."""

import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightwell.errors import UserError
from lightwell.glass import by_hand_network as network
from lightwell.glass import by_hand_transformer as transformer
from lightwell.glass.by_hand import EXAMPLES, Factor, Line, draw_line, example, flat, neuron, short

SHEETS = {name: example(name) for name in EXAMPLES}


def line_of(sheet, name):
    (found,) = [line for line in sheet.forward + sheet.backward if line.name == name]
    return found


def test_the_neuron_of_the_textbook():
    sheet = neuron(x=1.1, w=2.2, b=0.0, target=1.0)
    text = str(sheet)
    assert "dL/dw = dL/da x da/dz x dz/dw = -1.0889 x 0.0750 x 1.1 = -0.0898" in text
    assert "dL/db = dL/da x da/dz x dz/db = -1.0889 x 0.0750 x 1 = -0.0817" in text
    assert line_of(sheet, "z").value == pytest.approx(2.42)
    assert line_of(sheet, "L").value == pytest.approx(math.log(1 + math.exp(-2.42)), rel=1e-14)
    assert sheet.gradients["w"] == pytest.approx(-1.1 / (1 + math.exp(2.42)), rel=1e-14)
    assert sheet.agree


@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(-1, 1), st.sampled_from([0.0, 1.0, 0.3]))
def test_any_neuron_agrees_three_ways(x, w, b, target):
    sheet = neuron(x, w, b, target)
    assert sheet.agree
    answer = 1 / (1 + math.exp(-(w * x + b)))
    assert sheet.gradients["b"] == pytest.approx(answer - target, abs=1e-12)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_agrees_and_can_be_read(name):
    sheet = SHEETS[name]
    assert sheet.agree
    for check in sheet.checks:
        assert check.error_autograd <= 4e-15
        assert check.error_differences <= 1e-7
    text = str(sheet)
    assert sheet.title in text
    assert "disagree" not in text
    assert "{" not in text
    assert all(len(line) <= 125 for line in text.splitlines())
    assert "\x1b" not in text
    assert "\x1b" in sheet.draw(color=True)
    again = json.loads(json.dumps(sheet.to_dict()))
    assert again["agree"] is True
    assert all(line["sentence"] for line in again["forward"] + again["backward"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_terms_of_a_sum_close_on_its_element(name):
    summed = [line for line in SHEETS[name].forward + SHEETS[name].backward if line.terms or line.factors]
    assert summed
    for line in summed:
        value = line.value
        for index in line.element:
            value = value[index]
        if line.terms:
            assert math.fsum(term.value for term in line.terms) == pytest.approx(value, abs=1e-14)
        else:
            assert math.prod(factor.value for factor in line.factors) == pytest.approx(value, abs=1e-14)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_printed_as_a_sum_adds_up(name):
    sums = 0
    for row in str(SHEETS[name]).splitlines():
        found = re.fullmatch(r"\s+(?:\S+ )?= (-?[\d.e+ -]+?) = (-?[\d.e-]+)( \(.*)?", row)
        if found:
            sums += 1
            assert eval(found[1]) == pytest.approx(float(found[2]), abs=1e-3)
    assert sums or name == "neuron"


def test_a_wrong_gradient_is_called_wrong():
    inputs = {"w": 2.0}
    wrong = network.three_ways(inputs, {"w": 4.0 * 1.01}, lambda g: g["w"] ** 2, lambda g: g["w"] ** 2)
    assert not wrong[0].agree
    assert network.three_ways(inputs, {"w": 4.0}, lambda g: g["w"] ** 2, lambda g: g["w"] ** 2)[0].agree


@pytest.mark.parametrize("zero_grad", [True, False])
def test_a_whole_run_is_pytorchs_to_the_last_digit(zero_grad):
    run = network.train(60, 0.5, zero_grad)
    assert max(run.gradient_differences) < 5e-14
    assert max(run.weight_differences) < 5e-14
    assert len(run.losses) == 60
    if zero_grad:
        assert max(run.gradient_differences + run.weight_differences) < 1e-15
        assert run.losses[-1] < run.losses[0] / 3


def test_without_zero_grad_the_gradients_pile_up():
    clean, piled = network.train(2), network.train(2, zero_grad=False)
    assert piled.gradients[0] == clean.gradients[0]
    both = [a + b for a, b in zip(flat(clean.gradients[0]["W1"]), flat(clean.gradients[1]["W1"]))]
    assert list(flat(piled.gradients[1]["W1"])) == pytest.approx(both, abs=1e-15)


def test_the_hand_step_is_an_optimizer_step_of_pytorch():
    x, y = network.data()
    weights = network.first_weights()
    gradients = network.backward(weights, x, y, network.forward(weights, x, y))
    after = network.update(weights, gradients, 0.5)
    theirs = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in weights.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=0.5)
    network.torch_loss(theirs, x, y).backward()
    optimizer.step()
    for name, tensor in theirs.items():
        assert list(flat(after[name])) == pytest.approx(tensor.flatten().tolist(), abs=1e-15)
    assert sum(1 for _ in flat(list(weights.values()))) == 61


def test_operations_are_counted():
    measured = network.cost()
    assert measured["parameters"] == 61
    # 8 examples: 50 + 5 products, as many sums, 5 comparisons; the sigmoid and the loss a few each
    products_and_sums = 8 * (2 * 55 + 5)
    assert products_and_sums <= measured["forward_operations"] <= products_and_sums + 8 * 8
    assert measured["backward_operations"] < 2 * measured["forward_operations"]
    assert measured["differences_operations"] == 122 * measured["forward_operations"]
    assert measured["differences_seconds"] > measured["autograd_seconds"]
    assert type(network.first_weights()["b2"]) is float


def test_attention_masks_and_competes():
    sheet = SHEETS["attention"]
    shares, slopes = line_of(sheet, "P").value, line_of(sheet, "dL/dS").value
    assert [sum(row) for row in shares] == pytest.approx([1, 1, 1])
    assert [sum(row) for row in slopes] == pytest.approx([0, 0, 0], abs=1e-15)
    assert shares[0][1] == shares[0][2] == shares[1][2] == slopes[0][1] == slopes[1][2] == 0


@given(st.lists(st.floats(-4, 4), min_size=4, max_size=4), st.floats(-6, 6))
def test_the_parts_of_the_block_have_the_slopes_of_pytorch(row, u):
    x = torch.tensor([row], dtype=torch.float64, requires_grad=True)
    out = torch.nn.functional.layer_norm(x, (4,), eps=transformer.EPS)
    upstream = [[1.0, -2.0, 0.5, 3.0]]
    out.backward(torch.tensor(upstream, dtype=torch.float64))
    seen = transformer.norm([row], [1.0] * 4, [0.0] * 4)
    back = transformer.norm_back(upstream, [1.0] * 4, seen)
    assert seen.out[0] == pytest.approx(out[0].tolist(), abs=1e-9)
    assert back[0] == pytest.approx(x.grad[0].tolist(), rel=1e-6, abs=1e-9)
    bent = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.gelu(bent, approximate="tanh").backward()
    assert transformer.gelu_slope(u) == pytest.approx(bent.grad.item(), abs=1e-13)


def test_lines_are_written_as_on_paper():
    terms = [Factor("a", "0.5 x 2", 1.0), Factor("b", "0 x 3", 0.0), Factor("c", "1 x -0.25", -0.25)]
    drawn = draw_line(Line("s", "a b", [0.75], element=(0,), terms=terms)).splitlines()
    assert drawn[2:] == ["    s[0] = 0.5 x 2 + 1 x -0.25", "         = 1 - 0.25 = 0.75 (terms of 0 left out: 1)"]
    assert draw_line(Line("s", "a", [0.0], element=(0,), terms=[Factor("b", "0 x 3", 0.0)])).splitlines()[
        2
    ].strip() == ("s[0] = 0 (terms of 0 left out: 1)")
    assert [short(v) for v in (1.1, -0.0, 0.07501, -1.08892, 0.00012345, 1e-9)] == [
        "1.1",
        "0",
        "0.0750",
        "-1.0889",
        "1.234e-04",
        "1e-09",
    ]


def test_an_unknown_example_is_the_users_mistake():
    with pytest.raises(UserError, match="expected an example out of neuron, mlp, attention, block, got 'nothing'"):
        example("nothing")
