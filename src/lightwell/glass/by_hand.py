"""Backpropagation by hand: small examples in which every number is worked out with Python's own arithmetic.

    print(example("neuron"))

An `Example` is a sheet of paper: the forward pass line by line, the backward pass line by line, and each gradient
checked against PyTorch's autograd and against finite differences. Nothing on the sheet is taken from PyTorch; it is the
other side of the check. Here are the sheet and the first example, one neuron; the network with a hidden layer is in
`by_hand_network`, attention and the transformer block in `by_hand_transformer`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lightwell.errors import UserError
from lightwell.glass.wording import say
from lightwell.show.table import draw_table
from lightwell.show.terminal import paint

Value = Any  # a float, or lists of them: [x, y] a vector, [[...], [...]] a matrix

EXAMPLES = {  # name -> module with a function of that name
    "neuron": "lightwell.glass.by_hand",
    "mlp": "lightwell.glass.by_hand_network",
    "attention": "lightwell.glass.by_hand_transformer",
    "block": "lightwell.glass.by_hand_transformer",
}
STEP = 1e-5  # of the finite differences: both sides of a number, so that the error goes with its square
WIDTH = 120  # columns of the sheet
_EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Factor:
    """One factor of a chain, or one term of a sum: its name, its formula, its number."""

    name: str
    formula: str
    value: float


@dataclass(frozen=True)
class Line:
    """One line of the sheet: `name = formula = numbers = value`, and what it means.

    factors: what is multiplied. terms: what is added up to the element `element` of the value.
    """

    name: str
    formula: str
    value: Value
    numbers: str = ""
    sentence: str = ""
    factors: list[Factor] = field(default_factory=list)
    element: tuple[int, ...] = ()
    terms: list[Factor] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """One gradient, three ways. Errors are the largest over its elements; `agree` compares them with the bounds."""

    name: str
    by_hand: Value
    autograd: Value
    differences: Value
    error_autograd: float
    bound_autograd: float
    error_differences: float
    bound_differences: float

    @property
    def agree(self) -> bool:
        return self.error_autograd <= self.bound_autograd and self.error_differences <= self.bound_differences


@dataclass(frozen=True)
class Section:
    """More to read after the check: a title, prose, a drawing for the terminal; `data` has its numbers."""

    title: str
    prose: str
    drawing: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A worked example. `str()` is the sheet for people, `to_dict()` the same for programs."""

    name: str
    title: str
    intro: str
    inputs: dict[str, Value]
    forward: list[Line]
    backward: list[Line]
    checks: list[Check]
    sections: list[Section] = field(default_factory=list)
    closing: str = ""
    language: str = "en"

    @property
    def agree(self) -> bool:
        return all(check.agree for check in self.checks)

    @property
    def gradients(self) -> dict[str, Value]:
        """Name of an input -> the gradient worked out by hand."""
        return {check.name.removeprefix("dL/d"): check.by_hand for check in self.checks}

    def to_dict(self) -> dict[str, Any]:
        checks = [asdict(check) | {"agree": check.agree} for check in self.checks]
        return asdict(self) | {"checks": checks, "agree": self.agree}

    def __str__(self) -> str:
        return self.draw()

    def draw(self, color: bool = False) -> str:
        """For the terminal."""

        def title(text: str) -> str:
            return paint(text, "bold", color)

        given = "\n".join(equation(name, value) for name, value in self.inputs.items())
        parts = [title(self.title), self.intro, title(self._say("given")), given, title(self._say("forward"))]
        parts += [draw_line(line, self.language, color) for line in self.forward]
        parts.append(title(self._say("backward")))
        parts += [draw_line(line, self.language, color) for line in self.backward]
        parts += [title(self._say("checked")), draw_checks(self.checks, self.language, color)]
        for section in self.sections:
            parts += [title(section.title), section.prose, section.drawing]
        return "\n\n".join(part for part in [*parts, self.closing] if part)

    def _say(self, key: str) -> str:
        return say(f"by_hand.sheet.{key}", self.language)


def example(name: str, language: str = "en") -> Example:
    """The example of that name: neuron, mlp, attention or block. Raises UserError for another name."""
    if name not in EXAMPLES:
        raise UserError(f"expected an example out of {', '.join(EXAMPLES)}, got {name!r}.")
    made: Example = getattr(import_module(EXAMPLES[name]), name)(language=language)
    return made


def neuron(x: float = 1.1, w: float = 2.2, b: float = 0.0, target: float = 1.0, language: str = "en") -> Example:
    """One neuron with a sigmoid and binary cross-entropy: the chain rule with three factors."""

    def words(key: str) -> str:
        return say(f"by_hand.neuron.{key}", language)

    def loss_of(given: Mapping[str, float]) -> float:
        answer = sigmoid(given["w"] * given["x"] + given["b"])
        return binary_cross_entropy(answer, target)

    z = w * x + b
    a = sigmoid(z)
    loss = binary_cross_entropy(a, target)
    forward = [
        Line("z", "w * x + b", z, f"{short(w)} x {short(x)} + {short(b)}", words("z")),
        Line("a", "1 / (1 + exp(-z))", a, f"1 / (1 + exp(-{short(z)}))", words("a")),
        Line("L", "-(y * ln(a) + (1 - y) * ln(1 - a))", loss, _loss_in_numbers(a, target), words("L")),
    ]
    to_answer = Factor("dL/da", "-y / a + (1 - y) / (1 - a)", -target / a + (1 - target) / (1 - a))
    to_sum = Factor("da/dz", "a * (1 - a)", a * (1 - a))
    to_weight, to_bias, to_input = Factor("dz/dw", "x", x), Factor("dz/db", "1", 1.0), Factor("dz/dx", "w", w)
    in_numbers = (
        f"-{short(target)} / {short(a)} + {short(1 - target)} / {short(1 - a)}",
        f"{short(a)} x {short(1 - a)}",
    )
    backward = [
        Line(to_answer.name, to_answer.formula, to_answer.value, in_numbers[0], words("dL/da")),
        Line(to_sum.name, to_sum.formula, to_sum.value, in_numbers[1], words("da/dz")),
        Line(to_weight.name, to_weight.formula, to_weight.value, "", words("dz/dw")),
        chain("dL/dw", [to_answer, to_sum, to_weight], words("dL/dw")),
        chain("dL/db", [to_answer, to_sum, to_bias], words("dL/db")),
        chain("dL/dx", [to_answer, to_sum, to_input], words("dL/dx")),
    ]
    gradients = {line.name.removeprefix("dL/d"): line.value for line in backward[3:]}
    inputs = {"x": x, "w": w, "b": b}

    def torch_loss(given: Mapping[str, Tensor]) -> Tensor:
        answer = torch.sigmoid(given["w"] * given["x"] + given["b"])
        return torch.nn.functional.binary_cross_entropy(answer, torch.tensor(target, dtype=torch.float64))

    checks = three_ways(inputs, gradients, loss_of, torch_loss)
    return Example(
        name="neuron",
        title=words("title"),
        intro=words("intro"),
        inputs=inputs | {"y": target},
        forward=forward,
        backward=backward,
        checks=checks,
        closing=words("closing"),
        language=language,
    )


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def binary_cross_entropy(answer: float, target: float) -> float:
    """-ln of the probability that the answer gave to what is true. A target of 0 or 1 leaves one of two terms."""
    hit = target * math.log(answer) if target else 0.0
    miss = (1 - target) * math.log(1 - answer) if target != 1 else 0.0
    return -(hit + miss)


def chain(name: str, factors: list[Factor], sentence: str) -> Line:
    """The line of a product: the chain rule."""
    value = math.prod(factor.value for factor in factors)
    formula = " x ".join(factor.name for factor in factors)
    return Line(name, formula, value, " x ".join(short(factor.value) for factor in factors), sentence, factors)


def three_ways(
    inputs: Mapping[str, Value],
    gradients: Mapping[str, Value],
    loss_of: Callable[[Mapping[str, Value]], float],
    torch_loss: Callable[[Mapping[str, Tensor]], Tensor],
) -> list[Check]:
    """Each gradient beside autograd's, run on `torch_loss` in float64, and beside central differences of `loss_of`.

    Bounds: a few hundred roundings for autograd; for differences the curve's bend, h^2, and the loss's rounding over h.
    """
    tensors = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in inputs.items()}
    loss = torch_loss(tensors)
    loss.backward()
    rounding = _EPSILON * (1 + abs(loss.item()))
    scale = max([1.0, *(abs(v) for gradient in gradients.values() for v in flat(gradient))])
    checks = []
    for name, gradient in gradients.items():
        ours, autograd = list(flat(gradient)), tensors[name].grad
        assert autograd is not None
        differences = finite_differences(inputs, name, loss_of)
        checks.append(
            Check(
                name=f"dL/d{name}",
                by_hand=gradient,
                autograd=autograd.tolist(),
                differences=like(gradient, differences),
                error_autograd=largest_difference(ours, autograd.flatten().tolist()),
                bound_autograd=256 * _EPSILON * scale,
                error_differences=largest_difference(ours, differences),
                bound_differences=100 * scale * STEP**2 + 16 * rounding / STEP,
            )
        )
    return checks


def finite_differences(
    inputs: Mapping[str, Value], name: str, loss_of: Callable[[Mapping[str, Value]], float]
) -> list[float]:
    """The slope along each element of one input: the loss a little above minus a little below, over the distance."""
    numbers, slopes = list(flat(inputs[name])), []
    for k, number in enumerate(numbers):
        around = []
        for moved in (number + STEP, number - STEP):
            elements = [*numbers[:k], moved, *numbers[k + 1 :]]
            around.append(loss_of({**inputs, name: like(inputs[name], elements)}))
        slopes.append((around[0] - around[1]) / (2 * STEP))
    return slopes


def flat(value: Value) -> Iterator[float]:
    """The numbers of nested lists, in order."""
    if isinstance(value, list):
        for item in value:
            yield from flat(item)
    else:
        yield value


def like(value: Value, numbers: Sequence[float]) -> Value:
    """`numbers` in the nesting of `value`."""
    remaining = iter(numbers)

    def fill(pattern: Value) -> Value:
        return [fill(item) for item in pattern] if isinstance(pattern, list) else next(remaining)

    return fill(value)


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)


def short(value: float) -> str:
    """A number as one writes it on paper: 1.1 as it is, others to four decimals, very small ones to four digits."""
    as_it_is = f"{value or 0.0:.10g}"  # no sign on a zero
    if len(as_it_is.lstrip("-")) <= 5:
        return as_it_is
    return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.3e}"


def draw_line(line: Line, language: str = "en", color: bool = False) -> str:
    """One line of the sheet for the terminal, its sum in full and its sentence below."""
    steps = [line.formula, line.numbers] if line.numbers else [line.formula]
    if isinstance(line.value, list):
        parts = [_wrapped(f"  {line.name} = {' = '.join(steps)}", 4), equation(line.name, line.value)]
    else:
        steps += [short(line.value)] if short(line.value) != steps[-1] else []
        parts = [_wrapped(f"  {line.name} = " + " = ".join(steps), 4)]
    if line.terms:
        parts.append(_sum_in_full(line, language))
    if line.sentence:
        parts.append(paint(_wrapped("    " + line.sentence, 4), "dim", color))
    return "\n".join(parts)


def _sum_in_full(line: Line, language: str) -> str:
    """One element's terms, first as they are formed, then as numbers; terms of zero are counted instead of shown."""
    place = line.name + (f"[{','.join(map(str, line.element))}]" if line.element else "")
    terms = [term for term in line.terms if term.value != 0]
    numbers = _signed([term.value for term in terms])
    total = short(math.fsum(term.value for term in line.terms))
    steps = [" + ".join(term.formula for term in terms), *([numbers] if len(terms) > 1 else []), total]
    steps = [step for step, before in zip(steps, ["", *steps]) if step and step != before.replace("+ -", "- ")]
    lead = f"    {place} = "
    rows = [lead + steps[0], *(" " * (len(lead) - 2) + f"= {step}" for step in steps[1:-1])]
    rows[-1] += f" = {steps[-1]}" if len(steps) > 1 else ""
    if zeros := len(line.terms) - len(terms):
        rows[-1] += " " + say("by_hand.sheet.zeros", language, zeros=zeros)
    return "\n".join(_wrapped(row, len(lead)) for row in rows)


def _signed(numbers: Sequence[float]) -> str:
    """0.3 + 0.1 - 0.2"""
    if not numbers:
        return "0"
    first, *rest = numbers
    return short(first) + "".join(f" {'-' if n < 0 else '+'} {short(abs(n))}" for n in rest)


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, drop_whitespace=True, break_on_hyphens=False)


def draw_checks(checks: Sequence[Check], language: str = "en", color: bool = False) -> str:
    """The three ways side by side; of a matrix the first element and the largest error."""
    headers = [say(f"by_hand.sheet.{k}", language) for k in ("gradient", "hand", "autograd", "differences", "verdict")]
    rows = []
    for check in checks:
        many = isinstance(check.by_hand, list)
        name = check.name + ("[" + ",".join("0" * _depth(check.by_hand)) + "], ..." if many else "")
        first = [next(flat(v)) for v in (check.by_hand, check.autograd, check.differences)]
        verdict = say(f"by_hand.sheet.{'agree' if check.agree else 'disagree'}", language)
        errors = f"{verdict} ({check.error_autograd:.0e}, {check.error_differences:.0e})"
        rows.append([name, *(f"{v:.10f}" for v in first), errors])
    return draw_table(rows, headers, "lrrrl", color)


def _depth(value: Value) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) else 0


def equation(name: str, value: Value) -> str:
    """A number, vector or matrix with its name in front, the rows of a matrix below each other."""
    if not isinstance(value, list):
        return f"    {name} = {short(value)}"
    lead, matrix = f"    {name} = ", value if isinstance(value[0], list) else [value]
    rows = ["  ".join(f"{short(v):>8}" for v in row) for row in matrix]
    return "\n".join((lead if k == 0 else " " * len(lead)) + f"[ {row} ]" for k, row in enumerate(rows))


def _loss_in_numbers(a: float, target: float) -> str:
    if target in (0.0, 1.0):
        return f"-ln({short(a if target else 1 - a)})"
    return f"-({short(target)} x ln({short(a)}) + {short(1 - target)} x ln({short(1 - a)}))"
