"""A whole training step by hand: 10 inputs, 5 ReLU neurons, one sigmoid, binary cross-entropy, plain SGD.

`forward`, `backward` and `update` are the three functions that any training consists of, written out over plain Python
numbers. `train` repeats them and compares every number with PyTorch's after every step; `mlp` is the worked example.
Letters: N examples, I inputs, H hidden neurons.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightwell.glass.by_hand import (
    STEP,
    Example,
    Factor,
    Line,
    Section,
    Value,
    flat,
    largest_difference,
    like,
    short,
    three_ways,
)
from lightwell.glass.wording import say
from lightwell.show.curve import draw_curve
from lightwell.show.table import draw_table
from lightwell.show.units import duration, thousands

INPUTS, HIDDEN, EXAMPLES = 10, 5, 8
SMALLEST, LOWEST_LOG = (
    1e-12,
    -100.0,
)  # PyTorch keeps the loss's divisor above the one and its logarithms above the other
Weights = dict[str, Value]  # W1 (H, I), b1 (H), w2 (H), b2


@dataclass(frozen=True)
class Forward:
    """What the forward pass leaves behind, since the backward pass needs it: sums z and answers a of both layers."""

    z1: list[list[float]]
    a1: list[list[float]]
    z2: list[float]
    a2: list[float]
    loss: float


@dataclass(frozen=True)
class Training:
    """A run beside PyTorch's. For each step: the loss, `.grad` as the update saw it, and the largest difference of any
    gradient and any weight to PyTorch's, which had its own weights from the first step on.
    """

    losses: list[float]
    gradients: list[Weights]
    weights: Weights
    gradient_differences: list[float]
    weight_differences: list[float]


class Counted(float):
    """A number that counts what is done with it, so that the cost of a calculation is seen and not told."""

    done = 0


def _counting(name: str) -> Any:
    plain = getattr(float, name)

    def operation(self: Counted, *others: float) -> Any:
        Counted.done += 1
        result = plain(self, *others)
        return Counted(result) if isinstance(result, float) else result

    return operation


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "gt"):
    setattr(Counted, f"__{_name}__", _counting(f"__{_name}__"))


def forward(weights: Weights, x: Value, y: list[float]) -> Forward:
    """x (N, I), y (N) -> sums, answers and the mean loss."""
    z1 = [[_dot(row, inputs, bias) for row, bias in zip(weights["W1"], weights["b1"])] for inputs in x]
    a1 = [[z if z > 0 else 0.0 for z in row] for row in z1]
    z2 = [_dot(weights["w2"], answers, weights["b2"]) for answers in a1]
    a2 = [1 / (1 + _exp(-z)) for z in z2]
    loss = 0.0
    for answer, truth in zip(a2, y):
        loss = loss + -_log(answer if truth else 1 - answer)
    return Forward(z1, a1, z2, a2, loss / len(y))


def backward(weights: Weights, x: Value, y: list[float], seen: Forward) -> Weights:
    """The gradient of the mean loss with respect to each weight, from what the forward pass left behind."""
    dz2 = []
    for answer, truth in zip(seen.a2, y):
        slope = answer * (1 - answer)  # da2/dz2, the sigmoid's
        to_answer = (answer - truth) / (slope if slope > SMALLEST else SMALLEST) / len(y)  # dL/da2
        dz2.append(to_answer * slope)
    dz1 = [
        [d * w if z > 0 else 0.0 for w, z in zip(weights["w2"], row)]  # through the weight, if the neuron was on
        for d, row in zip(dz2, seen.z1)
    ]
    by_neuron = list(zip(*dz1))
    return {
        "W1": [[_dot(slopes, inputs) for inputs in zip(*x)] for slopes in by_neuron],
        "b1": [_sum(slopes) for slopes in by_neuron],
        "w2": [_dot(dz2, answers) for answers in zip(*seen.a1)],
        "b2": _sum(dz2),
    }


def update(weights: Weights, gradients: Weights, rate: float) -> Weights:
    """SGD: each weight a little way down its own slope."""
    return {
        name: like(value, [w - rate * g for w, g in zip(flat(value), flat(gradients[name]))])
        for name, value in weights.items()
    }


def train(steps: int, rate: float = 0.5, zero_grad: bool = True) -> Training:
    """`steps` steps from the first weights, by hand and in PyTorch; without zero_grad the gradients pile up."""
    x, y = data()
    weights = first_weights()
    kept: Weights = {name: like(value, [0.0] * len(list(flat(value)))) for name, value in weights.items()}
    theirs = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in weights.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=rate)
    losses, used, gradient_differences, weight_differences = [], [], [], []
    for _ in range(steps):
        seen = forward(weights, x, y)
        new = backward(weights, x, y, seen)
        if zero_grad:
            kept = new
        else:
            kept = {n: like(v, [a + b for a, b in zip(flat(v), flat(new[n]))]) for n, v in kept.items()}
        weights = update(weights, kept, rate)

        if zero_grad:
            optimizer.zero_grad()
        torch_loss(theirs, x, y).backward()
        optimizer.step()
        losses.append(seen.loss)
        used.append(kept)
        gradient_differences.append(max(_difference(kept[n], t.grad) for n, t in theirs.items()))
        weight_differences.append(max(_difference(weights[n], t.detach()) for n, t in theirs.items()))
    return Training(losses, used, weights, gradient_differences, weight_differences)


def torch_loss(weights: Mapping[str, Tensor], x: Value, y: list[float]) -> Tensor:
    """The same network in PyTorch's own functions."""
    functional = torch.nn.functional
    inputs, truth = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    hidden = functional.linear(inputs, weights["W1"], weights["b1"]).relu()
    return functional.binary_cross_entropy((hidden @ weights["w2"] + weights["b2"]).sigmoid(), truth)


def data() -> tuple[list[list[float]], list[float]]:
    """Eight examples of ten numbers; the truth is whether the first five weigh more than the last five.

    The last example is the first once more with the other truth: not everything can be learned, as in life.
    """
    x = [[((n * (2 * i + 3) + i * i) % 7 - 3) / 3 for i in range(INPUTS)] for n in range(1, EXAMPLES + 1)]
    y = [1.0 if sum(row[:5]) > sum(row[5:]) else 0.0 for row in x]
    return x, [*y[:-1], 1 - y[0]]


def first_weights() -> Weights:
    """Weights of about the size that a framework would draw, without drawing: waves."""
    w1 = [[0.4 * math.sin(3.7 * j + 1.3 * i + 1) for i in range(INPUTS)] for j in range(HIDDEN)]
    return {
        "W1": w1,
        "b1": [0.05 * (j - 2) for j in range(HIDDEN)],
        "w2": [0.5 * math.cos(2.1 * j + 0.4) for j in range(HIDDEN)],
        "b2": 0.1,
    }


def mlp(rate: float = 0.5, steps: int = 60, language: str = "en") -> Example:
    """The worked example: one step in every number, then the run, the missing zero_grad, and what autograd saves."""

    def words(key: str, **values: object) -> str:
        return say(f"by_hand.mlp.{key}", language, **values)

    x, y = data()
    weights = first_weights()
    seen = forward(weights, x, y)
    gradients = backward(weights, x, y, seen)
    checks = three_ways(
        weights, gradients, lambda given: forward(dict(given), x, y).loss, lambda given: torch_loss(given, x, y)
    )
    return Example(
        name="mlp",
        title=words("title"),
        intro=words("intro"),
        inputs={"x[0]": x[0], "y": y, **weights},
        forward=_forward_lines(weights, x, y, seen, words),
        backward=_backward_lines(weights, x, y, seen, gradients, words),
        checks=checks,
        sections=[
            _update_section(weights, gradients, rate, words),
            *_run_sections(steps, rate, words),
            _cost_section(weights, x, y, words),
        ],
        closing=words("closing"),
        language=language,
    )


def cost() -> dict[str, Any]:
    """Operations and seconds of one backward pass, and of finite differences for the same gradient."""
    x, y = data()
    weights = first_weights()
    counted = {name: like(value, [Counted(v) for v in flat(value)]) for name, value in weights.items()}
    inputs: Value = [[Counted(v) for v in row] for row in x]
    Counted.done = 0
    seen = forward(counted, inputs, y)
    forward_operations, Counted.done = Counted.done, 0
    backward(counted, inputs, y, seen)
    backward_operations, Counted.done = Counted.done, 0
    parameters = sum(1 for _ in flat(list(weights.values())))
    started = time.perf_counter()
    backward(weights, x, y, forward(weights, x, y))
    between = time.perf_counter()
    for name, value in weights.items():
        numbers = list(flat(value))
        for k, number in enumerate(numbers):
            for moved in (number + STEP, number - STEP):
                forward({**weights, name: like(value, [*numbers[:k], moved, *numbers[k + 1 :]])}, x, y)
    return {
        "parameters": parameters,
        "forward_operations": forward_operations,
        "backward_operations": backward_operations,
        "autograd_operations": forward_operations + backward_operations,
        "differences_operations": 2 * parameters * forward_operations,
        "autograd_seconds": between - started,
        "differences_seconds": time.perf_counter() - between,
    }


def _forward_lines(weights: Weights, x: Value, y: list[float], seen: Forward, words: Any) -> list[Line]:
    products = [
        Factor(f"W1[0,{i}] x[0,{i}]", f"{short(w)} x {short(v)}", w * v)
        for i, (w, v) in enumerate(zip(weights["W1"][0], x[0]))
    ]
    products.append(Factor("b1[0]", short(weights["b1"][0]), weights["b1"][0]))
    truth = "ln(a2)" if y[0] else "ln(1 - a2)"
    return [
        Line("z1", "x W1^T + b1", seen.z1, "", words("z1"), element=(0, 0), terms=products),
        Line("a1", "max(z1, 0)", seen.a1, "", words("a1")),
        Line("z2", "a1 w2 + b2", seen.z2, "", words("z2")),
        Line("a2", "1 / (1 + exp(-z2))", seen.a2, "", words("a2")),
        Line(
            "L",
            f"mean of -ln(a2) where y = 1, -ln(1 - a2) where y = 0; the first is -{truth}",
            seen.loss,
            "",
            words("L"),
        ),
    ]


def _backward_lines(
    weights: Weights, x: Value, y: list[float], seen: Forward, gradients: Weights, words: Any
) -> list[Line]:
    n = len(y)
    da2 = [(a - t) / (a * (1 - a)) / n for a, t in zip(seen.a2, y)]
    slope2 = [a * (1 - a) for a in seen.a2]
    dz2 = [d * s for d, s in zip(da2, slope2)]
    da1 = [[d * w for w in weights["w2"]] for d in dz2]
    dz1 = [[d if z > 0 else 0.0 for d, z in zip(*rows)] for rows in zip(da1, seen.z1)]
    column = [row[1] for row in dz1]

    def share(k: int, left: float, right: float) -> Factor:
        return Factor(f"example {k}", f"{short(left)} x {short(right)}", left * right)

    return [
        Line("dL/da2", "(a2 - y) / (a2 * (1 - a2)) / N", da2, "", words("da2")),
        Line("da2/dz2", "a2 * (1 - a2)", slope2, "", words("slope2")),
        Line("dL/dz2", "dL/da2 x da2/dz2 = (a2 - y) / N", dz2, "", words("dz2")),
        Line(
            "dL/dw2",
            "a1^T dL/dz2",
            gradients["w2"],
            "",
            words("dw2"),
            element=(1,),
            terms=[share(k, d, row[1]) for k, (d, row) in enumerate(zip(dz2, seen.a1))],
        ),
        Line(
            "dL/db2",
            "sum of dL/dz2",
            gradients["b2"],
            "",
            words("db2"),
            terms=[Factor(f"example {k}", short(d), d) for k, d in enumerate(dz2)],
        ),
        Line("dL/da1", "dL/dz2 w2", da1, "", words("da1")),
        Line("dL/dz1", "dL/da1 where z1 > 0, else 0", dz1, "", words("dz1")),
        Line(
            "dL/dW1",
            "(dL/dz1)^T x",
            gradients["W1"],
            "",
            words("dW1"),
            element=(1, 0),
            terms=[share(k, d, row[0]) for k, (d, row) in enumerate(zip(column, x))],
        ),
        Line("dL/db1", "sum over examples of dL/dz1", gradients["b1"], "", words("db1")),
    ]


def _update_section(weights: Weights, gradients: Weights, rate: float, words: Any) -> Section:
    after = update(weights, gradients, rate)
    rows = [
        [f"{name}{place}", short(w), short(g), short(-rate * g), short(new)]
        for name, value in weights.items()
        for place, w, g, new in zip(_places(value), flat(value), flat(gradients[name]), flat(after[name]))
    ]
    headers = [words(f"update.{k}") for k in ("parameter", "before", "gradient", "change", "after")]
    data_ = {"rate": rate, "before": weights, "gradients": gradients, "after": after}
    return Section(words("update.title"), words("update.prose", rate=rate), draw_table(rows, headers, "lrrrr"), data_)


def _run_sections(steps: int, rate: float, words: Any) -> list[Section]:
    clean, piled = train(steps, rate), train(steps, rate, zero_grad=False)
    worst = max(clean.gradient_differences + clean.weight_differences)
    curve = draw_curve(
        {words("run.with"): list(enumerate(clean.losses)), words("run.without"): list(enumerate(piled.losses))},
        height=12,
        x_label=words("run.step"),
        y_label=words("run.loss"),
    )
    first_rows = [
        [k + 1, *(next(flat(run.gradients[k]["W1"])) for run in (clean, piled)), clean.losses[k], piled.losses[k]]
        for k in range(min(5, steps))
    ]
    headers = [words(f"zero_grad.{k}") for k in ("step", "with", "without", "loss_with", "loss_without")]
    run_data: dict[str, Any] = {"losses": clean.losses, "gradient_differences": clean.gradient_differences}
    run_data |= {"weight_differences": clean.weight_differences, "weights": clean.weights}
    return [
        Section(words("run.title"), words("run.prose", steps=steps, worst=f"{worst:.1e}"), "", run_data),
        Section(
            words("zero_grad.title"),
            words("zero_grad.prose"),
            draw_table(first_rows, headers) + "\n\n" + curve,
            {"losses": piled.losses, "weight_differences": piled.weight_differences},
        ),
    ]


def _cost_section(weights: Weights, x: Value, y: list[float], words: Any) -> Section:
    measured = cost()
    rows = [
        [words(f"cost.{way}"), thousands(measured[f"{way}_operations"]), duration(measured[f"{way}_seconds"])]
        for way in ("autograd", "differences")
    ]
    drawing = draw_table(rows, [words(f"cost.{k}") for k in ("way", "operations", "seconds")], "lrr")
    large = 124_412_160
    prose = words(
        "cost.prose",
        parameters=measured["parameters"],
        passes=2 * measured["parameters"],
        ratio=round(measured["differences_operations"] / measured["autograd_operations"]),
        large=thousands(large),
        years=f"{2 * large / 3 / 86400 / 365.25:.1f}",
    )
    return Section(words("cost.title"), prose, drawing, measured)


def _places(value: Value) -> list[str]:
    if not isinstance(value, list):
        return [""]
    if not isinstance(value[0], list):
        return [f"[{i}]" for i in range(len(value))]
    return [f"[{j},{i}]" for j, row in enumerate(value) for i in range(len(row))]


def _dot(a: Any, b: Any, start: float | None = None) -> float:
    products = [x * y for x, y in zip(a, b)]
    return _sum(products if start is None else [*products, start])


def _sum(numbers: Any) -> float:
    total, *rest = numbers
    for number in rest:
        total = total + number
    return total


def _exp(z: float) -> float:
    Counted.done += isinstance(z, Counted)
    return type(z)(math.exp(z))


def _log(p: float) -> float:
    Counted.done += isinstance(p, Counted)
    return type(p)(max(math.log(p), LOWEST_LOG) if p else LOWEST_LOG)


def _difference(ours: Value, theirs: Tensor | None) -> float:
    assert theirs is not None
    return largest_difference(list(flat(ours)), theirs.flatten().tolist())
