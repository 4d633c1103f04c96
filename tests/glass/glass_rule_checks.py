"""What it means that a row of the table is right: five checks, each giving a list of complaints (empty: right).

Shared by the tests of the rules; the tests of these checks themselves hand them mutated rows, which they must reject.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightwell.glass import formula as formulas
from lightwell.glass.call import Call, Path, tensors_of, written_arguments
from lightwell.glass.index_map import aligned
from lightwell.glass.rule import Rule


class Recorder(TorchDispatchMode):
    """Keeps every kernel call, with what it overwrites kept as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        before = Call(op, tuple(args), kwargs or {}, ())
        writes = bool(written_arguments(op))
        kept = before.with_inputs(
            {path: t.detach().clone() if writes else t.detach() for path, t in before.tensor_inputs().items()}
        )
        result = op(*args, **(kwargs or {}))
        outputs = tuple(t.detach().clone() for t in tensors_of(result))
        self.calls.append(Call(op, kept.args, kept.kwargs, outputs))
        return result


def upstream_for(call: Call, generator: torch.Generator) -> list[Tensor | None]:
    """A random gradient for each output that can have one."""
    return [
        torch.randn(z.shape, generator=generator, dtype=z.dtype) if z.is_floating_point() else None
        for z in call.outputs
    ]


def by_autograd(
    call: Call, upstream: list[Tensor | None]
) -> tuple[Call, list[Tensor | None], dict[Path, Tensor]] | None:
    """The call as PyTorch ran it again, the upstream gradients that it took, and its gradients; None if it has none."""
    leaves = {path: x.detach().clone().requires_grad_() for path, x in call.float_inputs().items()}
    while True:
        try:
            with torch.enable_grad():
                alive = call.with_inputs({path: x.clone() for path, x in leaves.items()})
                outputs = tensors_of(alive.op(*alive.args, **alive.kwargs))
            break
        except RuntimeError as error:  # PyTorch names the argument that it does not differentiate by
            refused = re.search(r"not differentiable with respect to argument '(\w+)'", str(error))
            if refused is None:
                raise
            del leaves[call.path(refused[1])]
    taken = [dz if z.requires_grad else None for z, dz in zip(outputs, upstream)]
    pairs = [(z, dz) for z, dz in zip(outputs, taken) if dz is not None]
    if not pairs:
        return None
    zs, dzs = zip(*pairs)
    try:
        gradients = torch.autograd.grad(zs, list(leaves.values()), dzs, allow_unused=True)
    except RuntimeError as error:
        if "not implemented" in str(error):  # PyTorch has no derivative of this operation (in place)
            return None
        raise
    again = replace(call, outputs=tuple(z.detach() for z in outputs))
    return again, taken, {p: torch.zeros_like(x) if g is None else g for (p, x), g in zip(leaves.items(), gradients)}


def complaints(got: dict[Path, Tensor], wanted: dict[Path, Tensor], tolerance: float) -> list[str]:
    """Where two sets of gradients differ. A missing one counts as 0."""
    found = []
    for path, want in wanted.items():
        have = got.get(path, torch.zeros_like(want))
        allowed = max(tolerance, 8 * torch.finfo(want.dtype).eps)
        if have.shape != want.shape:
            found.append(f"{path}: shape {tuple(have.shape)} instead of {tuple(want.shape)}")
        elif not torch.allclose(have, want, rtol=allowed, atol=allowed, equal_nan=True):
            found.append(f"{path}: off by {(have - want).abs().max().item():.3g}\n{have}\n{want}")
    return found


def jacobian(rule: Rule, call: Call, output: int = 0) -> dict[Path, Tensor]:
    """The row's Jacobian of one output: {path: (shape of the output, shape of the input)}."""
    z = call.outputs[output]
    rows = [rule.row(call, out, output) for out in places(z)]
    paths = dict.fromkeys(path for row in rows for path in row)
    return {path: torch.stack([row[path] for row in rows]).reshape(*z.shape, *call.get(path).shape) for path in paths}


def places(x: Tensor) -> list[tuple[int, ...]]:
    """All indices of a tensor."""
    return list(itertools.product(*(range(n) for n in x.shape)))


def measured_jacobian(call: Call, path: Path, output: int = 0, step: float = 1e-5) -> Tensor:
    """The same by central differences: run the operation twice for each input element."""
    x = call.get(path)
    columns = []
    for place in places(x):
        shifted = []
        for sign in (1, -1):
            moved = x.clone()
            moved[place] += sign * step
            shifted.append(call.replay({path: moved})[output])
        columns.append((shifted[0] - shifted[1]) / (2 * step))
    return torch.stack(columns, -1).reshape(*call.outputs[output].shape, *x.shape)


def check_by_differences(
    rule: Rule, call: Call, output: int = 0, measured: dict[Path, Tensor] | None = None
) -> list[str]:
    """The row's local derivatives are what one measures by moving each input element a little (or has `measured`)."""
    by_rule = jacobian(rule, call, output)
    known = {} if measured is None else measured
    for path in by_rule.keys() - known.keys():
        known[path] = measured_jacobian(call, path, output)
    return complaints(by_rule, {path: known[path] for path in by_rule}, 1e-6)


def check_formula(
    rule: Rule, call: Call, formula: str | None = None, jacobians: dict[int, dict[Path, Tensor]] | None = None
) -> list[str]:
    """The row's plain formula, read and computed, is what its code computes; and nothing is left without a formula.

    Another formula, and the row's Jacobians if they are known already, may be handed in.
    """
    known = {} if jacobians is None else jacobians
    known[0] = known.get(0) or jacobian(rule, call)
    symbols, letters, stated, found = rule.symbols(call), rule.paths(call), set(), []
    for equation in formulas.parse(rule.formula if formula is None else formula):
        path, output = letters[equation.of], int(equation.output[1:] or 0)
        value = call.get(path)
        if not (isinstance(value, list) or (isinstance(value, Tensor) and value.is_floating_point())):
            continue
        stated.add(path)
        known[output] = by_rule = known.get(output) or jacobian(rule, call, output)
        z = call.outputs[output]
        if isinstance(value, list):
            have = torch.stack([by_rule[(*path, i)] for i in range(len(value))], z.dim())
        else:
            have = by_rule.get(path, torch.zeros(*z.shape, *value.shape, dtype=torch.float64))
        want = equation.evaluate(symbols)
        if equation.rows is None:
            want = _diagonal(want.expand(z.shape), value)
        found += complaints({path: have.reshape(want.shape)}, {path: want}, 1e-10)
    missing = {path[:1] for path in known[0]} - stated
    return found + [f"{path}: has a gradient and no formula" for path in missing]


def _diagonal(slopes: Tensor, x: Tensor) -> Tensor:
    """Slopes element by element as a whole Jacobian."""
    full = torch.zeros(*slopes.shape, *x.shape, dtype=torch.float64)
    for out in places(slopes):
        full[out + aligned(x, out)] = slopes[out]
    return full


def check_index_map(rule: Rule, draw: Callable[[int], Call], output: int = 0, most: int = 60) -> list[str]:
    """An output element reads exactly those elements of the inputs it has a derivative for (if any) that can change it.

    `draw(seed)` is the same call with other real numbers. Each input element in turn takes its value from the next
    draw; which outputs change is collected until it is all that the row states, or `most` draws have not shown it.
    """
    call = draw(0)
    z = call.outputs[output]
    paths = set(rule.row(call, places(z)[0], output)) or set(call.float_inputs())
    inputs = {path: x for path, x in call.float_inputs().items() if path in paths}
    stated = {path: torch.zeros(*z.shape, *x.shape, dtype=torch.bool) for path, x in inputs.items()}
    for out in places(z):
        for path, read in rule.index_map(call, out).items():
            for place in read.tolist() if path in stated else []:
                stated[path][(*out, *place)] = True
    seen = {path: torch.zeros_like(read) for path, read in stated.items()}
    for seed in range(most):
        call, other = draw(seed), draw(seed + 1)
        for path in stated:
            x = call.get(path)
            for place in places(x):
                changed = x.clone()
                changed[place] = other.get(path)[place]
                z, before = call.replay({path: changed})[output], call.outputs[output]
                seen[path][(..., *place)] |= (z - before).abs() > 1e-12 if z.is_floating_point() else z != before
        if all(torch.equal(stated[path], seen[path]) for path in stated):
            return []
    wrong = {path: (stated[path] != seen[path]).nonzero() for path in stated}
    return [f"{path}: stated and measured differ at (output, input) {where.tolist()}" for path, where in wrong.items()]


def mutations(rule: Rule, call: Call, output: int = 0) -> Iterator[tuple[str, Rule]]:
    """The row with one gradient wrong: 1% too large, of the wrong sign, transposed where that is another gradient."""
    changes = {"factor 1.01": lambda g: g * 1.01, "sign": lambda g: -g, "transposed": lambda g: g.mT}
    for path, slopes in jacobian(rule, call, output).items():
        if not slopes.any():
            continue
        square = call.get(path).dim() >= 2 and slopes.shape[-1] == slopes.shape[-2]
        for name, change in changes.items():
            if name != "transposed" or (square and not torch.equal(slopes, slopes.mT)):
                yield f"{name} at {path}", replace(rule, backward=_with_change(rule, path, change))


def _with_change(rule: Rule, path: Path, change: Callable[[Tensor], Tensor]) -> Callable[..., dict[Path, Tensor]]:
    def backward(call: Call, upstream: list[Tensor | None]) -> dict[Path, Tensor]:
        gradients = rule.backward(call, upstream)
        return gradients | {path: change(gradients[path])} if path in gradients else gradients

    return backward


def check_against_autograd(rule: Rule, call: Call, seed: int = 1000, tolerance: float = 1e-9) -> list[str]:
    """The row's gradients are PyTorch's."""
    twin = by_autograd(call, upstream_for(call, torch.Generator().manual_seed(seed)))
    if twin is None:
        return []
    again, upstream, wanted = twin
    return complaints(rule.backward(again, upstream), wanted, tolerance)
