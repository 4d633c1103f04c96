"""How a gradient came about, with the numbers of the traced step.

The gradient of an element w_i is the sum, over every element z_j that an operation computed from it, of

    dL/dz_j x dz_j/dw_i                            upstream gradient times local derivative

The upstream gradients are those that the trace captured; the local derivatives are worked out again in float64 from the
captured inputs, by our rule where there is one. Neither `.grad` nor anything else that autograd made of w_i is read for
the sum: autograd's own number stands beside it, with the difference, and a bound on what rounding alone may make of it.

The bound: autograd adds n terms and rounds each intermediate to its precision, u = half the spacing of floats at 1. The
computed sum then differs from the exact one by at most (n + 16) u times the sum of the terms' magnitudes, where 16
stands for the roundings inside a local derivative and of handing on (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", 3.1). For a whole tensor it is the measured noise of `noise`, times its safety factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightwell.errors import TraceError
from lightwell.glass.call import Path
from lightwell.glass.chain import Chain, chains
from lightwell.glass.graph import Graph, Place, replay
from lightwell.glass.noise import SAFETY, noise_floor, precision
from lightwell.glass.notebook import Shown
from lightwell.glass.recording import Edge, Operation
from lightwell.glass.result import Trace
from lightwell.glass.values import Value
from lightwell.glass.wording import languages

ROUNDINGS = 16
SMALL = 1 << 16  # elements up to which the whole function is run again for its finite difference


@dataclass(frozen=True)
class Term:
    """One term: `upstream` dL/dz_j times `local` dz_j/dw_i. `inner` explains the upstream gradient in its turn."""

    operation: Operation
    path: Path
    output: int
    place: Place
    upstream: float
    local: float
    inner: list[Term] = field(default_factory=list)

    @property
    def value(self) -> float:
        return self.upstream * self.local


@dataclass(frozen=True)
class Reading:
    """All that one operation hands back: the largest terms, and how many there are with what sum.

    For a whole tensor there are no terms; `shapes` are those of the input, the upstream gradient and the other inputs.
    """

    operation: Operation
    path: Path
    backward_pass: int
    source: str
    value: Any  # float for an element, Tensor for a tensor
    count: int
    magnitude: float  # sum of |terms|
    terms: list[Term]
    views: list[Operation]  # passed over on the way: the same numbers in another shape


@dataclass(frozen=True)
class Way:
    """A path through the network's modules: `labels` from the loss down, and its part of the gradient."""

    labels: list[str]
    value: float


@dataclass(frozen=True)
class Explanation(Shown):
    """A gradient taken apart. `str()` is for people, `to_dict()` for programs.

    value      the gradient: the sum of all terms in float64 (float for an element, Tensor for a tensor)
    terms      the largest terms; `rest` how many others there are, and their sum
    autograd   what autograd has now in `.grad` (or returned), None if it is gone
    residual   the largest difference between the two, and `bound`, what rounding may explain
    before     what `.grad` held before the traced passes and is part of it
    """

    trace: Trace
    target: Value
    index: Place | None
    value: Any
    readings: list[Reading]
    terms: list[Term]
    rest: tuple[int, float]
    chains: list[Chain]
    ways: list[Way]
    before: Any
    autograd: Any
    residual: float | None
    bound: float
    differences: float | None
    differences_of: str
    language: str = "en"

    @property
    def agree(self) -> bool:
        """Whether autograd's number is within the bound (True if autograd has none)."""
        return self.residual is None or self.residual <= self.bound

    def __str__(self) -> str:
        from lightwell.glass.explain_text import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only."""
        from lightwell.glass.explain_text import plain

        return plain(self)


def explain(
    trace: Trace,
    tensor: Tensor,
    index: Sequence[int] | int | None = None,
    *,
    depth: int = 1,
    top: int = 5,
    language: str = "en",
    backward: int | None = None,
) -> Explanation:
    """The gradient of `tensor`, or of its element at `index`, as a sum of terms.

    depth     how many operations deep to follow the largest terms towards the loss
    top       how many terms to list
    backward  which backward pass of the trace; None: all that are in `.grad` now
    Raises TraceError where there is no gradient to explain, saying why.
    """
    if depth < 1 or top < 1:
        raise TraceError(f"expected depth and top of 1 or more, got depth={depth}, top={top}.")
    if language not in languages():
        raise TraceError(f"expected a language out of {', '.join(languages())}, got {language!r}.")
    question = _Question(trace, tensor, backward)
    value = question.value
    place = _place(value, index)
    if place is None:
        return _explain_tensor(question, language)
    return _explain_element(question, place, depth, top, language)


class _Question:
    """Which passes a tensor's gradient comes from, and what autograd has for it."""

    def __init__(self, trace: Trace, tensor: Tensor, backward: int | None) -> None:
        self.trace = trace
        versions = trace.values_of(tensor)
        _require_passes(trace, backward)
        arrivals = [a for a in trace.accumulations if any(a.parameter is v for v in versions)]
        self.before: Value | None = None
        if backward is None and arrivals:
            last = [arrivals[-1]]
            while last[-1].before is not None:
                earlier = [a for a in arrivals if a.after is last[-1].before and a is not last[-1]]
                if not earlier:
                    break
                last.append(earlier[0])
            self.before = last[-1].before
            wanted = [a.index for a in last[::-1]]
        elif backward is None:
            wanted = [i for i in _passes(trace) if any(_has_gradient(trace, v, i) for v in versions)][-1:]
        else:
            wanted = [backward]
        self.parts = [(Graph(trace, i), v) for i in wanted for v in versions if _has_gradient(trace, v, i)]
        self.value = self.parts[-1][1] if self.parts else versions[-1]
        if not self.parts:
            _refuse(trace, versions[-1], backward)
        self.autograd = self._autograd(tensor, backward, bool(arrivals))

    def _autograd(self, tensor: Tensor, backward: int | None, accumulated: bool) -> Tensor | None:
        if backward is None and accumulated:
            after = [a.after for a in self.trace.accumulations if any(a.parameter is v for _, v in self.parts)][-1]
            if after is not None and after.readable:  # as it was then: it may have been clipped since
                return after.read()
            grad = tensor.grad
            return None if grad is None else grad.detach() if grad.layout == torch.strided else grad.to_dense()
        found = [self.trace.gradient_of(v, graph.index) for graph, v in self.parts]
        return found[-1].read() if found[-1] is not None and found[-1].readable else None


def _explain_element(question: _Question, place: Place, depth: int, top: int, language: str) -> Explanation:
    trace, value = question.trace, question.value
    readings = [r for graph, v in question.parts for r in _readings(graph, v, place, depth, top)]
    before = float(question.before.read()[place]) if question.before is not None else 0.0
    total = sum((r.value for r in readings), before)
    terms = sorted((t for r in readings for t in r.terms), key=lambda t: -abs(t.value))[:top]
    count = sum(r.count for r in readings) - len(terms)
    rest = (count, total - before - sum(t.value for t in terms) if count else 0.0)
    bound = _bound(
        _dtypes(value, readings), sum(r.count for r in readings), sum(r.magnitude for r in readings) + abs(before)
    )
    autograd = None if question.autograd is None else float(question.autograd[place])
    differences, of = _differences(question, place)
    graph, v = question.parts[-1]
    root = _root(trace, graph.index)
    ways = [way for g, w in question.parts for way in _ways(g, w, place)]
    single = len(question.parts) == 1 and root is not None and question.before is None
    return Explanation(
        trace=trace,
        target=value,
        index=place,
        value=total,
        readings=readings,
        terms=terms,
        rest=rest,
        chains=(chains(graph, v, root) or []) if single and root is not None and _starts_with_one(trace, graph) else [],
        ways=ways if len(ways) > 1 else [],
        before=before,
        autograd=autograd,
        residual=None if autograd is None else abs(total - autograd),
        bound=bound,
        differences=None if differences is None else differences + before,
        differences_of=of,
        language=language,
    )


def _explain_tensor(question: _Question, language: str) -> Explanation:
    value = question.value
    before = 0.0 if question.before is None else question.before.read().double()
    total = torch.zeros(value.shape, dtype=torch.float64) + before
    noise = torch.finfo(value.dtype).eps * total.abs()
    readings = []
    for graph, v in question.parts:
        for edge in graph.readers(v):
            reading, floor = _whole_reading(graph, edge)
            readings.append(reading)
            total, noise = total + reading.value, noise + floor
    autograd = None if question.autograd is None else question.autograd.double()
    return Explanation(
        trace=question.trace,
        target=value,
        index=None,
        value=total,
        readings=readings,
        terms=[],
        rest=(0, 0.0),
        chains=[],
        ways=[],
        before=before,
        autograd=autograd,
        residual=None if autograd is None else _largest(total - autograd),
        bound=SAFETY * float(noise.max()) if noise.numel() else 0.0,
        differences=None,
        differences_of="",
        language=language,
    )


def _largest(gap: Tensor) -> float:
    return float(gap.abs().max()) if gap.numel() else 0.0


def _readings(graph: Graph, value: Value, place: Place, depth: int, top: int) -> Iterator[Reading]:
    """What each operation that read the element hands back; operations that only reshape are passed through."""
    for edge in graph.readers(value):
        yield from _reading(graph, edge, place, depth, top, [])


def _reading(graph: Graph, edge: Edge, place: Place, depth: int, top: int, views: list[Operation]) -> Iterator[Reading]:
    operation = graph.operation(edge)
    if not graph.can_run_again(operation):
        yield _as_captured(graph, edge, place, views)
        return
    onward = graph.step_over_view(edge, place)
    if onward is not None and graph.readers(onward[0]):
        for following in graph.readers(onward[0]):
            yield from _reading(graph, following, onward[1], depth, top, [*views, operation])
        return
    local = graph.local(operation)
    terms: list[Term] = []
    total = magnitude = 0.0
    count = 0
    for i, (column, upstream) in enumerate(zip(local.column(edge.path, place), graph.upstream(operation))):
        if upstream is None:
            continue
        gradient = upstream.read().to(column.device, torch.float64)
        products = (gradient * column).reshape(-1)
        where = column.reshape(-1).nonzero().reshape(-1)
        total += float(products.sum())
        magnitude += float(products.abs().sum())
        count += where.numel()
        largest = where[products[where].abs().argsort(descending=True, stable=True)[:top]]
        for flat in largest.tolist():
            at = _unravel(flat, column.shape)
            inner = _inner(graph, operation.outputs[i], at, depth, top)
            terms.append(Term(operation, edge.path, i, at, float(gradient[at]), float(column[at]), inner))
    terms = sorted(terms, key=lambda t: -abs(t.value))[:top]
    yield Reading(operation, edge.path, graph.index, local.source, total, count, magnitude, terms, views)


def _inner(graph: Graph, value: Value, place: Place, depth: int, top: int) -> list[Term]:
    if depth <= 1:
        return []
    found = [t for r in _readings(graph, value, place, depth - 1, top) for t in r.terms]
    return sorted(found, key=lambda t: -abs(t.value))[:top]


def _as_captured(graph: Graph, edge: Edge, place: Place, views: list[Operation]) -> Reading:
    """A step of autograd's own: nothing to recompute it from, so that its gradient is taken as it was captured."""
    gradient = float(edge.gradients[graph.index].read()[place])
    term = Term(graph.operation(edge), edge.path, 0, place, gradient, 1.0)
    return Reading(term.operation, edge.path, graph.index, "captured", gradient, 1, abs(gradient), [term], views)


def _whole_reading(graph: Graph, edge: Edge) -> tuple[Reading, Tensor]:
    """What one operation hands back to a whole tensor, and the noise that rounding puts into each element of it."""
    operation = graph.operation(edge)
    if not graph.can_run_again(operation):
        captured = edge.gradients[graph.index].read().double()
        eps = torch.finfo(edge.value.dtype).eps
        return Reading(operation, edge.path, graph.index, "captured", captured, 1, 0.0, [], []), eps * captured.abs()
    views: list[Edge] = []
    while _only_reshapes(graph, graph.operation(edge)):
        views.append(edge)
        (edge,) = graph.readers(graph.operation(edge).outputs[0])
    operation = graph.operation(edge)
    local = graph.local(operation)
    captured_upstream = graph.upstream(operation)
    upstream = [None if u is None else u.read().double() for u in captured_upstream]
    exact = local.pull(upstream)
    eps = precision([v.dtype for v in (*operation.inputs.values(), *captured_upstream) if v is not None])
    floor = noise_floor(local, upstream, exact, eps, operation.id)[edge.path]
    gradient = exact[edge.path]
    for view in reversed(views):
        back = graph.local(graph.operation(view))
        gradient, floor = back.pull([gradient])[view.path], back.pull([floor])[view.path]
    passed = [graph.operation(view) for view in views]
    return Reading(operation, edge.path, graph.index, local.source, gradient, 1, 0.0, [], passed), floor


def _only_reshapes(graph: Graph, operation: Operation) -> bool:
    """The same numbers in another shape, with a single reader: nothing to explain."""
    if operation.kind != "kernel" or len(operation.outputs) != 1 or len(graph.readers(operation.outputs[0])) != 1:
        return False
    return graph.local(operation).moves_numbers


def _ways(graph: Graph, value: Value, place: Place) -> list[Way]:
    """The gradient of the element, split by the branches of the network that its upstream gradient came through.

    What no junction splits is one way; that alone is not worth saying.
    """
    found: list[Way] = []
    for edge in graph.readers(value):
        operation = graph.operation(edge)
        junction = graph.junction(operation)
        here = operation.where
        if junction is None:
            found.append(Way([here], sum(r.value for r in _reading(graph, edge, place, 1, 1, []))))
            continue
        one = torch.zeros(value.shape, dtype=torch.float64)
        one[place] = 1
        change = graph.carry(value, one, junction, [edge])
        for share in graph.shares(junction):
            labels = [share.label, here]
            found.append(Way(labels, float((change * share.gradient(graph.index)).sum())))
    return found


def _differences(question: _Question, place: Place) -> tuple[float | None, str]:
    """The same number by central differences: of the whole function if it is small, else of the operations that read
    it.
    """
    if len(question.parts) != 1:
        return None, ""
    graph, value = question.parts[0]
    trace = question.trace
    root = _root(trace, graph.index)
    step = 1e-5 * max(1.0, abs(float(value.read()[place])))
    between = graph.above(value)
    size = sum(v.numel for o in between for v in o.outputs)
    if root is not None and root.numel == 1 and size <= SMALL and _starts_with_one(trace, graph):
        try:
            ends = [
                float(replay(trace, graph.index, {value.id: _moved(place, s * step)}, root).sum()) for s in (1.0, -1.0)
            ]
            return (ends[0] - ends[1]) / (2 * step), "function"
        except TraceError:
            pass
    total = 0.0
    for edge in graph.readers(value):
        operation = graph.operation(edge)
        if not graph.can_run_again(operation):
            return None, ""
        local = graph.local(operation)
        one = torch.zeros_like(local.inputs[edge.path])
        one[place] = 1
        changes = local.differences({edge.path: one}, step)
        pairs = zip(changes, graph.upstream(operation))
        total += sum(float((change * u.read().double()).sum()) for change, u in pairs if u is not None)
    return total, "operations"


def _moved(place: Place, step: float) -> Any:
    def move(tensor: Tensor) -> Tensor:
        moved = tensor.clone()
        moved[place] += step
        return moved

    return move


def _dtypes(value: Value, readings: list[Reading]) -> list[torch.dtype]:
    """Every precision that a term was rounded to: under autocast a coarser one than the tensor's own."""
    return [value.dtype, *(v.dtype for r in readings for v in r.operation.outputs if v.is_float)]


def _bound(dtypes: list[torch.dtype], count: int, magnitude: float) -> float:
    unit = precision(dtypes) / 2
    return (count + ROUNDINGS) * unit * magnitude


def _place(value: Value, index: Sequence[int] | int | None) -> Place | None:
    """The index of one element, checked; None: the whole tensor. A tensor of one element is that element."""
    if index is None:
        return (0,) * len(value.shape) if value.numel == 1 else None
    place = (index,) if isinstance(index, int) else tuple(int(i) for i in index)
    shape = list(value.shape)
    if len(place) != len(shape):
        raise TraceError(f"expected an index of {len(shape)} numbers for a tensor of shape {shape}, got {place}.")
    if any(not -n <= i < n for i, n in zip(place, shape)):
        raise TraceError(f"expected an index inside the shape {shape}, got {place}.")
    return tuple(i % n for i, n in zip(place, shape))


def _unravel(flat: int, shape: torch.Size) -> Place:
    place = []
    for n in reversed(shape):
        place.append(flat % n)
        flat //= n
    return tuple(place[::-1])


def _passes(trace: Trace) -> list[int]:
    return sorted({p.index for p in trace.passes})


def _root(trace: Trace, index: int) -> Value | None:
    roots = [p.roots for p in trace.passes if p.index == index]
    return roots[0][0] if roots and len(roots[0]) == 1 else None


def _starts_with_one(trace: Trace, graph: Graph) -> bool:
    (first, *_) = [p for p in trace.passes if p.index == graph.index]
    return all(s is None or (s.numel == 1 and float(s.read()) == 1.0) for s in first.seeds)


def _has_gradient(trace: Trace, value: Value, index: int) -> bool:
    return any(index in edge.gradients for edge in trace.readers.get(value.id, ()))


def _require_passes(trace: Trace, backward: int | None) -> None:
    if not trace.passes:
        raise TraceError("expected a backward pass in the traced block, got none.", "Call loss.backward() inside it.")
    failures = [p.failure for p in trace.passes if p.failure]
    if failures and all(p.failure for p in trace.passes):
        raise TraceError(f"expected a backward pass that ended, got one that failed: {failures[-1]}.")
    if backward is not None and backward not in _passes(trace):
        raise TraceError(f"expected one of the backward passes {_passes(trace)}, got {backward}.")


def _refuse(trace: Trace, value: Value, backward: int | None) -> None:
    """There is no gradient: say why."""
    readers = [trace.operations[e.target] for e in trace.readers.get(value.id, ())]
    roots = [root for p in trace.passes for root in p.roots]
    if any(root is value for root in roots):
        raise TraceError(
            f"expected a tensor below the loss, got {value.title}, where backward began: its gradient is what"
            " backward was given, 1 if nothing."
        )
    if not value.requires_grad:
        made = trace.operations[value.producer] if value.producer is not None else None
        how = (
            f"made by {made.name} ({made.place}) outside the graph" if made is not None else "a leaf that asks for none"
        )
        raise TraceError(
            f"expected a tensor with a gradient, got {value.title}: {how}.",
            "Set requires_grad_() before the forward pass, and keep detach() and no_grad() away from it.",
        )
    if not readers:
        raise TraceError(f"expected {value.title} to take part in the loss, got a tensor that no operation read.")
    names = ", ".join(dict.fromkeys(f"{o.name} ({o.place})" for o in readers[:3]))
    which = "the loss" if backward is None else f"the root of backward pass {backward}"
    raise TraceError(f"expected {value.title} to take part in the loss, got no path from {names} to {which}.")
