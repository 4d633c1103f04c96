"""Plain formulas of local derivatives: read, computed, written as LaTeX, and filled in with numbers.

A formula is text that a person reads and this file can check:

    dz/dx = z * (1 - z)                            element by element (the other entries of the Jacobian are 0)
    dz[i,j]/dw[k,l] = [j=l] * x[i,k]               entry by entry
    dz[i]/dx[j] = z[i] * ([i=j] - z[j])

Arithmetic is written as in Python. A statement in brackets is 1 where it holds, else 0 (Iverson's bracket), and 0
times anything is 0, so `[x>0] * log(x)` is 0 for negative x. `sum[k](...)` adds over all k that the tensors indexed by
k have, `sum[k<n](...)` over the first n. An element read outside its tensor is 0. `with t = ...` names a part:
"dz/dx = 1 - t**2 with t = tanh(x)"; `len(x)` is the number of elements. Several equations are separated by ";".
Nothing here is ever executed: the text is parsed to a tree, and the tree is walked.

Source of the bracket: Knuth 1992, "Two notes on notation".
"""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LEFT = re.compile(r"d(?P<out>[A-Za-z]\w*?)(\[(?P<i>[^]]*)\])?/d(?P<of>[A-Za-z]\w*)(\[(?P<j>[^]]*)\])?")
_SINGLE_EQUALS = re.compile(r"(?<![<>=!])=(?!=)")

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in ("exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "sqrt")},
    **{name: getattr(torch, name) for name in ("sign", "sigmoid", "abs", "floor", "trunc", "erf", "digamma", "sinc")},
    "trigamma": lambda x: torch.polygamma(1, x),
    "polygamma": lambda n, x: torch.polygamma(int(n), x),
    "bessel_j0": torch.special.bessel_j0,
    "bessel_j1": torch.special.bessel_j1,
    "bessel_i0": torch.special.i0,
    "bessel_i1": torch.special.i1,
    "min": torch.minimum,
    "max": torch.maximum,
    "inv": torch.linalg.inv,
    "triu": torch.triu,
    "len": lambda x: torch.tensor(x.numel(), dtype=torch.float64),
    "size": lambda x, d: torch.tensor(x.shape[int(d)], dtype=torch.float64),
}
_CONSTANTS = {"pi": math.pi, "inf": math.inf}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: torch.as_tensor(a, dtype=torch.float64) ** b,
    ast.Mod: lambda a, b: torch.remainder(torch.as_tensor(a), b),
    ast.FloorDiv: lambda a, b: torch.div(torch.as_tensor(a), b, rounding_mode="floor"),
}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}


@dataclass(frozen=True)
class Equation:
    """One equation: d`output`[`rows`] / d`of`[`columns`] = `value`. Without indices it holds element by element.

    In `value` the named parts are put in; `short` and `parts` are as written.
    """

    output: str
    rows: tuple[str, ...] | None
    of: str
    columns: tuple[str, ...] | None
    value: ast.expr
    text: str
    short: ast.expr
    parts: tuple[tuple[str, ast.expr], ...] = ()

    def evaluate(self, symbols: Mapping[str, Any]) -> Tensor:
        """The local derivative for these values of the letters.

        Element by element: of the broadcast shape of what the formula names. Entry by entry: the output's shape
        followed by the input's shape; leading dimensions of size 1 that have no index are left out.
        """
        if self.rows is None or self.columns is None:
            return self._element_by_element(symbols)
        shapes = [*_last(symbols[self.output].shape, self.rows), *_last(symbols[self.of].shape, self.columns)]
        sizes = dict(zip([*self.rows, *self.columns], shapes)) | _sum_sizes(self.value, symbols)
        order = [*self.rows, *self.columns, *(k for k in sizes if k not in self.rows + self.columns)]
        grid = {name: _along(sizes[name], [n == name for n in order]) for name in order}
        entries = torch.as_tensor(_Walk(symbols, grid).value(self.value), dtype=torch.float64)
        free = len(self.rows) + len(self.columns)
        full = entries.expand([*shapes, *[1] * (len(order) - free)])
        return full.reshape(shapes)

    def _element_by_element(self, symbols: Mapping[str, Any]) -> Tensor:
        """Indices of sums come before the dimensions of the tensors."""
        rank = max((x.dim() for x in symbols.values() if isinstance(x, Tensor)), default=0)
        sizes = _sum_sizes(self.value, symbols)
        grid = {name: _along(size, [n == name for n in sizes] + [False] * rank) for name, size in sizes.items()}
        value = torch.as_tensor(_Walk(symbols, grid).value(self.value), dtype=torch.float64)
        return value.reshape(value.shape[len(sizes) :])

    def with_numbers(self, symbols: Mapping[str, float], show: Callable[[float], str] = "{:.4g}".format) -> str:
        """The right side with numbers for its letters, each written by `show`: "0.9183 * (1 - 0.9183)"."""
        written = {name: show(value) for name, value in symbols.items()}
        names = {name: ast.Name(f"({text})" if text.startswith("-") else text) for name, text in written.items()}
        return ast.unparse(_Replaced(dict(names)).visit(copy.deepcopy(self.value)))


def parse(formula: str) -> list[Equation]:
    """The equations of a formula. Raises ValueError for text that is not one."""
    return [_equation(part.strip()) for part in formula.split(";") if part.strip()]


def parse_expression(text: str) -> ast.expr:
    """The tree of one expression; "=" inside brackets means "==". Raises ValueError (SyntaxError is one)."""
    try:
        return ast.parse(_SINGLE_EQUALS.sub("==", text.strip()), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"expected a formula, got {text!r}") from error


def evaluate(text: str, symbols: Mapping[str, Any]) -> Tensor:
    """The value of an expression without indices."""
    return torch.as_tensor(_Walk(symbols, {}).value(parse_expression(text)))


def to_latex(formula: str) -> str:
    """A formula in LaTeX, equations joined by a wide space."""
    return r" \qquad ".join(_equation_latex(equation) for equation in parse(formula))


def _equation(text: str) -> Equation:
    match = _LEFT.match(text)
    rest = text[match.end() :].lstrip() if match else ""
    if match is None or not rest.startswith("="):
        raise ValueError(f"expected an equation such as 'dz/dx = ...', got {text!r}")
    rows, columns = (None if match[g] is None else tuple(match[g].replace(" ", "").split(",")) for g in ("i", "j"))
    if rows == ("",):
        rows = ()
    if columns == ("",):
        columns = ()
    if (rows is None) != (columns is None):
        rows, columns = rows or (), columns or ()
    body, *named = rest[1:].split(" with ")
    parts = tuple(_part(part) for part in named)
    short = parse_expression(body)
    return Equation(match["out"], rows, match["of"], columns, _inlined(short, parts), text, short, parts)


def _part(text: str) -> tuple[str, ast.expr]:
    name, _, body = text.partition("=")
    return name.strip(), parse_expression(body)


def _inlined(tree: ast.expr, parts: tuple[tuple[str, ast.expr], ...]) -> ast.expr:
    for name, body in parts:
        tree = _Replaced({name: body}).visit(copy.deepcopy(tree))
    return tree


class _Replaced(ast.NodeTransformer):
    """Puts trees in the place of letters."""

    def __init__(self, trees: Mapping[str, ast.expr]) -> None:
        self.trees = trees

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.trees.get(node.id, node)


def _indices(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _summed(over: ast.Subscript) -> str:
    """The index that a sum runs over."""
    name = over.slice.left if isinstance(over.slice, ast.Compare) else over.slice
    return ast.unparse(name)


def _along(size: int, own: Sequence[bool]) -> Tensor:
    """0, 1, ..., size - 1 along the one dimension that is its own."""
    return torch.arange(size, dtype=torch.float64).reshape([-1 if is_own else 1 for is_own in own])


def _last(shape: Sequence[int], indices: Sequence[Any]) -> Sequence[int]:
    """The part of a shape that the indices are for: a batch of one needs no index."""
    extra = len(shape) - len(indices)
    if extra < 0 or any(n != 1 for n in shape[:extra]):
        raise ValueError(f"expected {len(indices)} dimensions, got {tuple(shape)}")
    return shape[extra:]


def _sum_sizes(tree: ast.expr, symbols: Mapping[str, Any]) -> dict[str, int]:
    """The range of every index that a sum runs over: the size of the dimension that it indexes."""
    subscripts = [n for n in ast.walk(tree) if isinstance(n, ast.Subscript)]
    sums = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Subscript)]
    sizes = {
        _summed(s): int(_Walk(symbols, {}).value(s.slice.comparators[0]))
        for s in sums
        if isinstance(s.slice, ast.Compare)
    }
    summed = {_summed(s) for s in sums} - set(sizes)
    for node in subscripts:
        names = [i.id if isinstance(i, ast.Name) else "" for i in _indices(node)]
        if isinstance(node.value, ast.Name) and node.value.id in symbols and summed.intersection(names):
            shape = _last(symbols[node.value.id].shape, names)
            sizes |= {name: n for name, n in zip(names, shape) if name in summed}
    return sizes


class _Walk:
    """Computes a tree. `grid` holds each index as an arange along its own dimension, so everything broadcasts."""

    def __init__(self, symbols: Mapping[str, Any], grid: Mapping[str, Tensor]) -> None:
        self.symbols, self.grid = symbols, grid

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() | str() as constant):
                return constant
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return self._times(left, right)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](self.value(left), self.value(right))
            case ast.List(elts=[statement]):
                return torch.as_tensor(self._holds(statement)).double()
            case ast.Call(func=ast.Subscript(value=ast.Name(id="sum")) as over, args=[body]):
                terms, index = torch.as_tensor(self.value(body), dtype=torch.float64), self.grid[_summed(over)]
                terms = terms.expand(torch.broadcast_shapes(terms.shape, index.shape))
                return terms.sum(list(self.grid).index(_summed(over)), keepdim=True)
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*(torch.as_tensor(self.value(a), dtype=torch.float64) for a in arguments))
            case ast.Subscript(value=whole):
                return self._element(self.value(whole), [self.value(i) for i in _indices(node)])
        raise ValueError(f"expected arithmetic, got {ast.unparse(node)!r}")

    def _name(self, name: str) -> Any:
        for table in (self.grid, self.symbols, _CONSTANTS):
            if name in table:
                return table[name]
        raise ValueError(f"expected a letter of the operation ({', '.join(self.symbols)}), got {name!r}")

    def _times(self, left: ast.expr, right: ast.expr) -> Any:
        a, b = self.value(left), self.value(right)
        for node, bracket, other in ((left, a, b), (right, b, a)):
            if isinstance(node, ast.List):
                return torch.where(bracket.bool(), torch.as_tensor(other, dtype=torch.float64), 0.0)
        return a * b

    def _holds(self, node: ast.expr) -> Any:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                values = [self.value(left), *(self.value(other) for other in others)]
                pairs = [torch.as_tensor(_COMPARE[type(op)](a, b)) for op, a, b in zip(ops, values, values[1:])]
                return _all(pairs)
            case ast.BoolOp(op=ast.And(), values=parts):
                return _all([self._holds(part) for part in parts])
            case ast.BoolOp(op=ast.Or(), values=parts):
                return ~_all([~torch.as_tensor(self._holds(part)) for part in parts])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~torch.as_tensor(self._holds(operand))
            case _:
                return torch.as_tensor(self.value(node)).bool()

    @staticmethod
    def _element(x: Any, places: list[Any]) -> Tensor:
        """x[places], 0 outside of the tensor."""
        x = torch.as_tensor(x)
        x = x.reshape(_last(x.shape, places))
        places = [torch.as_tensor(place).long() for place in places]
        inside = _all([(place >= 0) & (place < n) for place, n in zip(places, x.shape)])
        safe = [place.clamp(0, max(n - 1, 0)) for place, n in zip(places, x.shape)]
        return torch.where(torch.as_tensor(inside), x[tuple(safe)], 0)


def _all(parts: list[Any]) -> Any:
    result = torch.as_tensor(parts[0])
    for part in parts[1:]:
        result = result & part
    return result


# LaTeX. Each part comes with its rank, so that parentheses stand only where they are needed.

_GREEK = {
    "alpha": r"\alpha",
    "beta": r"\beta",
    "gamma": r"\gamma",
    "pi": r"\pi",
    "eps": r"\varepsilon",
    "inf": r"\infty",
}
_SIGNS = {ast.Eq: "=", ast.NotEq: r"\ne", ast.Lt: "<", ast.LtE: r"\le", ast.Gt: ">", ast.GtE: r"\ge"}
_KNOWN = {"exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "min", "max"}
_NAMED = {"digamma": r"\psi", "trigamma": r"\psi_1", "sigmoid": r"\sigma", "erf": r"\mathrm{erf}"}


def _equation_latex(equation: Equation) -> str:
    def name(letter: str, indices: tuple[str, ...] | None) -> str:
        return f"{_indexed(_letter(letter))}_{{{' '.join(indices)}}}" if indices else _letter(letter)

    top, bottom = name(equation.output, equation.rows), name(equation.of, equation.columns)
    parts = [rf", \quad {_letter(letter)} = {_latex(tree)[0]}" for letter, tree in equation.parts]
    return rf"\frac{{\partial {top}}}{{\partial {bottom}}} = {_latex(equation.short)[0]}" + "".join(parts)


def _letter(name: str) -> str:
    if name in _GREEK:
        return _GREEK[name]
    plain = re.fullmatch(r"([A-Za-z])(\d*)", name)
    if plain:
        return plain[1] + (f"_{plain[2]}" if plain[2] else "")
    return r"\mathrm{" + name.replace("_", r"\_") + "}"


def _indexed(text: str) -> str:
    """What is about to get an index; z_1 has one already, and a second one must be told apart."""
    return f"{{{text}}}" if re.fullmatch(r"[A-Za-z]_\d+", text) else text


def _within(node: ast.expr, rank: int) -> str:
    text, own = _latex(node)
    return text if own >= rank else rf"\left({text}\right)"


def _latex(node: ast.expr) -> tuple[str, int]:
    """LaTeX of a tree, and how tightly it holds together: 0 statement, 1 sum, 2 product, 3 power, 4 one thing."""
    match node:
        case ast.Constant(value=str() as word):
            return rf"\text{{{word}}}", 4
        case ast.Constant(value=number):
            return str(number), 4
        case ast.Name(id=name):
            return _letter(name), 4
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"-{_within(operand, 2)}", 1
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return rf"\frac{{{_latex(left)[0]}}}{{{_latex(right)[0]}}}", 3
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return f"{_within(left, 4)}^{{{_latex(right)[0]}}}", 3
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return rf"{_within(left, 2)} \cdot {_within(right, 2)}", 2
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            return rf"{_within(left, 2)} \bmod {_within(right, 2)}", 2
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            return rf"\left\lfloor \frac{{{_latex(left)[0]}}}{{{_latex(right)[0]}}} \right\rfloor", 4
        case ast.BinOp(left=left, op=op, right=right):
            sign, rank = ("+", 1) if isinstance(op, ast.Add) else ("-", 2)
            return f"{_within(left, 1)} {sign} {_within(right, rank)}", 1
        case ast.List(elts=[statement]):
            return rf"\left[{_latex(statement)[0]}\right]", 4
        case ast.Compare(left=left, ops=ops, comparators=others):
            rest = "".join(f" {_SIGNS[type(op)]} {_within(other, 1)}" for op, other in zip(ops, others))
            return _within(left, 1) + rest, 0
        case ast.BoolOp(op=op, values=parts):
            word = r" \;\text{and}\; " if isinstance(op, ast.And) else r" \;\text{or}\; "
            return word.join(_latex(part)[0] for part in parts), 0
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return rf"\text{{not}}\; {_latex(operand)[0]}", 0
        case ast.Call(func=ast.Subscript() as over, args=[body]):
            return rf"\sum_{{{_latex(over.slice)[0]}}} {_within(body, 2)}", 2
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _call_latex(name, arguments), 4
        case ast.Subscript(value=whole):
            return rf"{_indexed(_within(whole, 4))}_{{{', '.join(_latex(i)[0] for i in _indices(node))}}}", 4
    raise ValueError(f"expected arithmetic, got {ast.unparse(node)!r}")


def _call_latex(name: str, arguments: list[ast.expr]) -> str:
    inner = ", ".join(_latex(argument)[0] for argument in arguments)
    if name == "sqrt":
        return rf"\sqrt{{{inner}}}"
    if name == "inv":
        return rf"({inner}^{{-1}})"
    if name == "abs":
        return rf"\left|{inner}\right|"
    if name in ("len", "size"):
        return rf"n_{{{inner}}}"
    head = "\\" + name if name in _KNOWN else _NAMED.get(name, rf"\mathrm{{{name}}}".replace("_", r"\_"))
    return rf"{head}\left({inner}\right)"
