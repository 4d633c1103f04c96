"""What a rule is: one row of the chain rule's table, and how a row written as a small function becomes one.

A row is written with the letters of mathematics,

    @rule("mul", "dz/dx = y; dz/dy = x")
    def mul(dz, x, y):
        return dz * y, dz * x

`dz` is the upstream gradient: how the loss changes with each element of the output z. What follows it are the
operation's arguments in the order of its schema, numbers as 0-D tensors; what comes back is the gradient of each. After
the star come options, by the schema's own names, and three names of ours: `z` (the first output), `zs` (all outputs),
`call`. A row of an operation with several outputs that matter begins with `dzs`, one upstream gradient for each, None
for those unused. Gradients of an argument that was broadcast are summed back to its shape here, once for all rows.

Real numbers only: rows do not hold for complex tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes

from lightwell.glass import formula as formulas
from lightwell.glass.call import Call, Path, base_name
from lightwell.glass.index_map import IndexMap, elementwise

Kind = Literal["derivative", "view", "zero"]
Upstream = Sequence[Tensor | None]
Index = tuple[int, ...]

RULES: dict[str, Rule] = {}


@dataclass(frozen=True, eq=False)
class Rule:
    """One row: what an operation's local derivative is, as code, as a formula, as a sentence, and as a map of indices.

    name       base name of the operation, as in `call.base_name`
    backward   (call, upstream gradient of each output) -> gradient of each differentiable input, by its path
    formula    the same as plain text, read by `glass.formula`: "dz/dx = z * (1 - z)"; several are separated by ";"
    latex      the formula in LaTeX
    sentence   key of the sentence that says it in words (`glass.wording.say`)
    index_map  (call, index of an output element) -> input elements that it is computed from, {path: int64 (n, rank)}
    symbols    call -> the value of each letter in the formula
    paths      call -> where among its arguments each letter sits
    family     the file that has the row: "rules", "rules_losses", ...
    kind       "derivative"; "view": numbers are handed on unchanged; "zero": flat, or stopped on purpose
    kink       where the derivative does not exist and PyTorch's choice is taken: "x = 0; x = 6", "ties" or ""
    """

    name: str
    backward: Callable[[Call, Upstream], dict[Path, Tensor]]
    formula: str
    latex: str
    sentence: str
    index_map: Callable[[Call, Index], dict[Path, Tensor]]
    symbols: Callable[[Call], dict[str, Any]] = field(repr=False)
    paths: Callable[[Call], dict[str, Path]] = field(repr=False)
    family: str = ""
    kind: Kind = "derivative"
    kink: str = ""

    def row(self, call: Call, out_index: Index, output: int = 0) -> dict[Path, Tensor]:
        """Derivatives of one output element with respect to every input element: one row of the Jacobian."""
        upstream: list[Tensor | None] = [None] * len(call.outputs)
        upstream[output] = one_hot = torch.zeros_like(call.outputs[output])
        one_hot[out_index] = 1
        return self.backward(call, upstream)

    def column(self, call: Call, path: Path, in_index: Index, output: int = 0) -> Tensor:
        """Derivatives of every output element with respect to one input element: one column, of the output's shape.

        Backward is linear in its upstream, (J^T u)_i = sum_j u_j dz_j/dx_i: its own slope along u is the column.
        """
        with _disable_current_modes(), torch.enable_grad():
            u = torch.zeros_like(call.outputs[output], requires_grad=True)
            upstream: list[Tensor | None] = [None] * len(call.outputs)
            upstream[output] = u
            gradient = self.backward(call, upstream).get(path)
            if gradient is None or not gradient.requires_grad:
                return torch.zeros_like(u).detach()
            (column,) = torch.autograd.grad(gradient[in_index], u, allow_unused=True)
        return torch.zeros_like(u).detach() if column is None else column

    def local(self, call: Call, path: Path, out_index: Index, in_index: Index, output: int = 0) -> float:
        """One entry of the Jacobian: how fast this output element changes with this input element."""
        gradient = self.row(call, out_index, output).get(path)
        return 0.0 if gradient is None else float(gradient[in_index])


def rule(
    *names: str,
    formula: str,
    reads: IndexMap = elementwise,
    kind: Kind = "derivative",
    kink: str = "",
    says: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table under one or several names: "mul", or "max.dim" for one overload alone.

    `reads` is the index map, `says` the key of the sentence in texts/<language>/rules.toml (left out: the first name).
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        binding = _Binding(function)
        key = (says or names[0]).replace(".", "_")
        for name in names:
            RULES[name] = Rule(
                name=name,
                backward=binding.backward,
                formula=formula,
                latex=formulas.to_latex(formula),
                sentence=f"rules.{key}",
                index_map=binding.sloped if reads is linear else reads,
                symbols=binding.symbols,
                paths=binding.paths,
                family=function.__module__.rsplit(".", 1)[-1],
                kind=kind,
                kink=kink,
            )
        return function

    return enter


def find(op: OpOverload) -> Rule | None:
    """The rule of an operation (in place or not), or None if the table has no such row.

    An overload that means something else (`max.dim` beside `max`) has its own row; otherwise one row serves them all.
    """
    if op.namespace != "aten":
        return None
    return RULES.get(f"{base_name(op)}.{op._overloadname}") or RULES.get(base_name(op))


def linear(call: Call, out: Index) -> dict[Path, Tensor]:
    """As `reads` of a row: the operation is linear with slopes that no value decides; what has a slope is read."""
    raise NotImplementedError("stands for the row's own slopes; `rule` puts them in")


class _Binding:
    """Joins a row's letters to the arguments of a call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        upstream, *others = inspect.signature(function).parameters.values()
        self.function = function
        self.all_outputs = upstream.name == "dzs"
        self.letters = [p for p in others if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.options = {p.name: p.default for p in others if p.kind is p.KEYWORD_ONLY}

    def backward(self, call: Call, upstream: Upstream) -> dict[Path, Tensor]:
        if all(gradient is None for gradient in upstream):
            return {}
        inputs, options = self._bind(call)
        dz = upstream if self.all_outputs else upstream[0]
        if dz is None:
            dz = torch.zeros_like(call.outputs[0])
        with _disable_current_modes():
            result = self.function(dz, *inputs.values(), **options)
        gradients = result if isinstance(result, tuple) else (result,)
        paths = self.paths(call)
        found: dict[Path, Tensor] = {}
        for letter, gradient in zip(inputs, gradients):
            if gradient is None or letter not in paths:
                continue
            path = paths[letter]
            if isinstance(gradient, list):
                pieces: dict[Path, Tensor] = {(*path, i): g for i, g in enumerate(gradient) if g is not None}
            else:
                pieces = {path: gradient}
            found |= {p: _summed_to(piece, call.get(p)) for p, piece in pieces.items() if _is_float(call.get(p))}
        return found

    def sloped(self, call: Call, out: Index) -> dict[Path, Tensor]:
        """The index map of a linear row: where its slopes are not 0."""
        one_hot = torch.zeros_like(call.outputs[0], dtype=torch.float64)
        one_hot[out] = 1
        upstream = [one_hot, *[None] * (len(call.outputs) - 1)]
        return {path: slope.nonzero() for path, slope in self.backward(call.to(torch.float64), upstream).items()}

    def symbols(self, call: Call) -> dict[str, Any]:
        """Arguments by their letters, all options by the schema's names, outputs as z = z0, z1, ..."""
        inputs, _ = self._bind(call)
        options = {name: value for name, value in call.named().items() if name not in self._names(call).values()}
        outputs = {"z": call.outputs[0]} | {f"z{i}": output for i, output in enumerate(call.outputs)}
        letters = {**options, **inputs, **outputs}
        return {name: "none" if value is None else _stacked(value) for name, value in letters.items()}

    def paths(self, call: Call) -> dict[str, Path]:
        return {letter: call.path(name) for letter, name in self._names(call).items()}

    def _names(self, call: Call) -> dict[str, str]:
        """letter -> the schema's name of the argument that it stands for."""
        free = (a.name for a in call.op._schema.arguments if a.name not in self.options)
        return {p.name: name for p, name in zip(self.letters, free)}

    def _bind(self, call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
        named, names = call.named(), self._names(call)
        like = call.outputs[0]
        inputs = {
            p.name: _as_tensor(named[names[p.name]], like) if p.name in names else p.default for p in self.letters
        }
        ours = {"z": like.detach(), "zs": tuple(output.detach() for output in call.outputs), "call": call}
        options = {name: (named | ours).get(name, default) for name, default in self.options.items()}
        return inputs, options


def _as_tensor(value: Any, like: Tensor) -> Any:
    """Numbers as 0-D tensors, tensors cut off from autograd: a row computes, it is not computed through."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return [item.detach() if isinstance(item, Tensor) else item for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(value, dtype=like.dtype if like.is_floating_point() else None, device=like.device)
    return value


def _stacked(value: Any) -> Any:
    """A list of tensors of one shape as one tensor, so that a formula can index it."""
    if isinstance(value, list) and value and all(isinstance(v, Tensor) and v.shape == value[0].shape for v in value):
        return torch.stack(value)
    return value


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _summed_to(gradient: Tensor, x: Tensor) -> Tensor:
    """A broadcast argument served many outputs: its gradient is the sum over all of them."""
    if gradient.dim() < x.dim() or any(g < n for g, n in zip(gradient.shape[::-1], x.shape[::-1])):
        gradient = gradient.expand(torch.broadcast_shapes(gradient.shape, x.shape))
    return gradient.sum_to_size(x.shape).to(x.dtype)
