"""Plain formulas are read as Python reads them, computed as written, and shown in LaTeX and in numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightwell.glass import formula as formulas
from lightwell.glass.formula import evaluate, parse, to_latex

X = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)

numbers = st.integers(1, 5).map(str)
letters = st.sampled_from(["x", "y"])
expressions = st.recursive(
    numbers | letters,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda e: f"-({e})"),
        inner.map(lambda e: f"sin({e})"),
        inner.map(lambda e: f"tanh({e})"),
        inner.map(lambda e: f"({e})**2"),
    ),
    max_leaves=8,
)


@given(expressions, st.floats(-2, 2), st.floats(-2, 2))
def test_arithmetic_is_pythons(text: str, x: float, y: float) -> None:
    names = {"x": x, "y": y, "sin": math.sin, "tanh": math.tanh, "__builtins__": {}}
    wanted = eval(text, names)
    got = evaluate(text, {"x": torch.tensor(x, dtype=torch.float64), "y": torch.tensor(y, dtype=torch.float64)})
    assert got.item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(expressions)
def test_what_is_written_in_latex_can_be_any_expression(text: str) -> None:
    latex = to_latex(f"dz/dx = {text}")
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left(") == latex.count(r"\right)")


def test_brackets_are_one_where_they_hold() -> None:
    assert evaluate("[x > 0]", {"x": X}).tolist() == [1, 0, 1]
    assert evaluate("[0 < x <= 0.5]", {"x": X}).tolist() == [1, 0, 0]
    assert evaluate("[x > 1 or x < 0]", {"x": X}).tolist() == [0, 1, 1]
    assert evaluate("[x > 0 and not x > 1]", {"x": X}).tolist() == [1, 0, 0]
    assert evaluate("[x = 2]", {"x": X}).tolist() == [0, 0, 1]
    assert evaluate("[x != 2]", {"x": X}).tolist() == [1, 1, 0]
    assert evaluate('[mode = "mean"]', {"mode": "mean"}).item() == 1


def test_nothing_times_anything_is_nothing() -> None:
    values = evaluate("[x > 0] * log(x)", {"x": X})
    assert values.tolist() == pytest.approx([math.log(0.5), 0, math.log(2)])
    assert evaluate("log(x) * [x > 0]", {"x": X})[1] == 0


def test_entries_of_a_matrix_product() -> None:
    x, w = torch.randn(2, 3, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    (equation,) = parse("dz[i,j]/dx[k,l] = [i=k] * w[l,j]")
    wanted = torch.autograd.functional.jacobian(lambda x: x @ w, x)
    assert torch.equal(equation.evaluate({"z": x @ w, "x": x, "w": w}), wanted)


def test_sums_run_over_what_their_index_has() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    (equation,) = parse("dz[i]/dx[j,k] = sum[m](x[i,m]) * [i=j]")
    value = equation.evaluate({"z": x.sum(1), "x": x})
    assert torch.allclose(value[1, 1, 2], x[1].sum())
    assert value[0, 1, 0] == 0
    assert evaluate_one("sum[j<3](x)", X).tolist() == [1.5, -4.5, 6.0]
    assert evaluate_one("sum[j<3](x + j)", X).tolist() == [4.5, -1.5, 9.0]


def evaluate_one(text: str, x: torch.Tensor) -> torch.Tensor:
    return parse(f"dz/dx = {text}")[0].evaluate({"x": x, "z": x})


def test_outside_of_a_tensor_is_zero() -> None:
    (equation,) = parse("dz[i]/dx[j] = x[i + j]")
    assert equation.evaluate({"z": X, "x": X})[2].tolist() == [2, 0, 0]


def test_a_batch_of_one_needs_no_index() -> None:
    (equation,) = parse("dz[i]/dx[j] = [i=j]")
    assert torch.equal(equation.evaluate({"z": torch.ones(1, 1, 3), "x": torch.ones(1, 3)}), torch.eye(3).double())
    with pytest.raises(ValueError, match="expected 1 dimensions"):
        equation.evaluate({"z": torch.ones(2, 3), "x": torch.ones(3)})


def test_named_parts_are_put_in() -> None:
    (equation,) = parse("dz/dx = 1 - t**2 with t = tanh(u) with u = 2 * x")
    assert torch.allclose(equation.evaluate({"x": X}), 1 - torch.tanh(2 * X) ** 2)
    assert to_latex(equation.text).endswith(r", \quad t = \tanh\left(u\right), \quad u = 2 \cdot x")


def test_several_equations() -> None:
    first, second = parse("dz/dx = y; dz1[i]/dy[] = x[i]")
    assert (first.output, first.of, first.rows) == ("z", "x", None)
    assert (second.output, second.of, second.rows, second.columns) == ("z1", "y", ("i",), ())


def test_numbers_in_the_place_of_letters() -> None:
    (equation,) = parse("dz/dx = z * (1 - z)")
    assert equation.with_numbers({"z": 0.918273}) == "0.9183 * (1 - 0.9183)"
    (equation,) = parse("dz/dx = x - y")
    assert equation.with_numbers({"x": -1.5, "y": -2.0}, "{:.1f}".format) == "(-1.5) - (-2.0)"
    assert equation.text == "dz/dx = x - y"


@pytest.mark.parametrize(
    ("formula", "latex"),
    [
        ("dz/dx = 1 / x", r"\frac{\partial z}{\partial x} = \frac{1}{x}"),
        ("dz/dx = (x + 1) * y**2", r"\frac{\partial z}{\partial x} = \left(x + 1\right) \cdot y^{2}"),
        ("dz/dx = x - (y - 1)", r"\frac{\partial z}{\partial x} = x - \left(y - 1\right)"),
        ("dz/dx = -(x + y)", r"\frac{\partial z}{\partial x} = -\left(x + y\right)"),
        ("dz/dx = alpha * sqrt(abs(x))", r"\frac{\partial z}{\partial x} = \alpha \cdot \sqrt{\left|x\right|}"),
        (
            "dz[i]/dx[j] = z[i] * ([i=j] - z[j])",
            r"\frac{\partial z_{i}}{\partial x_{j}} = z_{i} \cdot \left(\left[i = j\right] - z_{j}\right)",
        ),
        ("dz/dx = [min_val < x]", r"\frac{\partial z}{\partial x} = \left[\mathrm{min\_val} < x\right]"),
        ("dz/dx[i] = sum[j](x[j]) / len(x)", r"\frac{\partial z}{\partial x_{i}} = \frac{\sum_{j} x_{j}}{n_{x}}"),
        ("dz/dx[j] = z1[0]**2", r"\frac{\partial z}{\partial x_{j}} = {z_1}_{0}^{2}"),
        ("dz1/dx = digamma(x)", r"\frac{\partial z_1}{\partial x} = \psi\left(x\right)"),
    ],
)
def test_latex(formula: str, latex: str) -> None:
    assert to_latex(formula) == latex


@pytest.mark.parametrize("text", ["", "dz = 3", "z/x = 1", "dz/dx", "dz/dx = (", "dz/dx = x y"])
def test_text_that_is_no_formula(text: str) -> None:
    if text:
        with pytest.raises(ValueError, match="expected"):
            parse(text)
    else:
        assert parse(text) == []


@pytest.mark.parametrize("text", ["__import__('os')", "x.real", "unknown(x)", "lambda: x", "x if y else z", "[x, y]"])
def test_nothing_but_arithmetic_is_computed(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        evaluate(text, {"x": X, "y": X, "z": X})


def test_an_unknown_letter_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(x\), got 'y'"):
        evaluate("x + y", {"x": X})
    assert formulas.parse_expression("[i=j]") is not None
