"""A trace read as the graph that one backward pass walked: who passes gradients to whom, and along which paths.

From a value, its *readers* lead towards the loss; each hands back one gradient. A value with several readers is a
junction, where their gradients add up. In a residual network the junctions form the *stream*: a reader that is a plain
addition hands the gradient on unchanged, the other readers begin a branch (attention, MLP) that comes back to the
stream at that addition. `shares` splits the gradient of a junction accordingly: so much came straight from the end, so
much through each branch. That is exact, since x' = x + f(x) has dL/dx = dL/dx' + (dL/dx through f).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightwell.errors import TraceError
from lightwell.glass.call import Path
from lightwell.glass.local import Local, run_again
from lightwell.glass.noise import gives_what_it_gave
from lightwell.glass.recording import Edge, Operation
from lightwell.glass.result import Trace
from lightwell.glass.values import Value

Place = tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """A part of a junction's gradient: `label` says which branch it came through, `edges` those
    on which it arrives, `last` whether it is what remains after all branches: the way straight to the loss.
    """

    label: str
    edges: list[Edge] = field(default_factory=list)
    last: bool = False

    def gradient(self, index: int) -> Tensor:
        """The sum over its edges, float64, of the shape of the junction's value."""
        parts = [edge.gradients[index].read().double() for edge in self.edges]
        return torch.stack(parts).sum(0)


class Graph:
    """The graph of backward pass `index` of a trace."""

    def __init__(self, trace: Trace, index: int) -> None:
        self.trace = trace
        self.index = index
        self._locals: dict[int, Local] = {}

    def readers(self, value: Value) -> list[Edge]:
        """The edges on which a gradient of this value came back, in the order of the forward pass."""
        return [edge for edge in self.trace.readers.get(value.id, ()) if self.index in edge.gradients]

    def operation(self, edge: Edge) -> Operation:
        return self.trace.operations[edge.target]

    def local(self, operation: Operation) -> Local:
        if operation.id not in self._locals:
            self._locals[operation.id] = Local.of(operation)
        return self._locals[operation.id]

    def can_run_again(self, operation: Operation) -> bool:
        """Whether its derivative can be worked out again; else there is only what autograd gave."""
        return operation.kind != "autograd" or operation.name == "CopySlices" or operation.name.startswith("AsStrided")

    def upstream(self, operation: Operation) -> list[Value | None]:
        """The captured gradient of each output."""
        flows = [flow for flow in operation.flows if flow.index == self.index]
        return flows[-1].upstream if flows else [None] * len(operation.outputs)

    def step_over_view(self, edge: Edge, place: Place) -> tuple[Value, Place] | None:
        """Where one element goes if the operation only shows the same numbers in another shape; else None."""
        operation = self.operation(edge)
        local = self.local(operation)
        if not local.moves_numbers:
            return None
        column = local.column(edge.path, place)
        places = [(i, tuple(p)) for i, changes in enumerate(column) for p in changes.nonzero().tolist()]
        if len(places) != 1 or float(column[places[0][0]][places[0][1]]) != 1.0:
            return None
        output, where = places[0]
        return operation.outputs[output], where

    def above(self, value: Value) -> list[Operation]:
        """Every operation between a value and the loss that took part in its gradient, in the order of the forward."""
        found: dict[int, Operation] = {}
        stack = [value]
        while stack:
            for edge in self.readers(stack.pop()):
                operation = self.operation(edge)
                if operation.id not in found:
                    found[operation.id] = operation
                    stack.extend(operation.outputs)
        return sorted(found.values(), key=_order)

    def junction(self, operation: Operation) -> Value | None:
        """A value through which everything that this operation does to the loss must pass, and that has several
        readers: the first on the stream, or the first at all if there is no stream; None if there is none.
        """
        found = None
        for value in self._junctions(operation):
            found = found or value
            if any(self._is_residual(edge) for edge in self.readers(value)):
                return value
        return found

    def _junctions(self, operation: Operation) -> Iterator[Value]:
        waiting: dict[int, int] = {}  # value id -> how many of its readers have not been passed
        by_id: dict[int, Value] = {}
        first = [operation, *(o for output in operation.outputs for o in self.above(output))]
        for current in sorted({o.id: o for o in first}.values(), key=_order):
            for value in current.inputs.values():
                if value.id in waiting:
                    waiting[value.id] -= 1
            for value in current.outputs:
                readers = len(self.readers(value))
                if readers:
                    waiting[value.id], by_id[value.id] = readers, value
            pending = [i for i, n in waiting.items() if n > 0]
            if len(pending) == 1 and 1 < waiting[pending[0]] == len(self.readers(by_id[pending[0]])):
                yield by_id[pending[0]]

    def shares(self, value: Value) -> list[Share]:
        """The gradient of a junction in parts, nearest branch first; along the stream as far as it goes."""
        found: list[Share] = []
        while True:
            readers = self.readers(value)
            onward = [edge for edge in readers if self._is_residual(edge)]
            if len(readers) < 2 or len(onward) != 1:
                labels = {edge.id: self.operation(edge).where for edge in readers}
                last = len({*labels.values()}) == 1
                for label in dict.fromkeys(labels.values()):
                    found.append(Share(label, [e for e in readers if labels[e.id] == label], last))
                return found
            addition = self.operation(onward[0])
            branches = [edge for edge in readers if edge is not onward[0]]
            found.append(Share(self._branch(addition, onward[0].path), branches))
            value = addition.outputs[0]

    def carry(self, value: Value, tangent: Tensor, to: Value, edges: list[Edge] | None = None) -> Tensor:
        """How `to` changes when `value` changes by `tangent` (float64), to first order, through what lies between.

        edges: only those readers of `value`; all of them if None.
        """
        changes: dict[int, Tensor] = {value.id: tangent}
        for operation in self.above(value):
            if to.id in changes and to.producer is not None and _order(operation) > self._order_of(to):
                break
            tangents = self._tangents(operation, changes, value, edges)
            if tangents:
                outputs = self.local(operation).push(tangents)
                changes |= {v.id: change for v, change in zip(operation.outputs, outputs)}
        return changes.get(to.id, torch.zeros(to.shape, dtype=torch.float64))

    def _tangents(
        self, operation: Operation, changes: Mapping[int, Tensor], start: Value, edges: list[Edge] | None
    ) -> dict[Path, Tensor]:
        allowed = None if edges is None else {(edge.target, edge.path) for edge in edges}
        return {
            path: changes[v.id]
            for path, v in operation.inputs.items()
            if v.id in changes and (v is not start or allowed is None or (operation.id, path) in allowed)
        }

    def _order_of(self, value: Value) -> int:
        return _order(self.trace.operations[value.producer or 0])

    def _is_residual(self, edge: Edge) -> bool:
        """x' = x + f(x): the gradient of x' is handed on as it is."""
        operation = self.operation(edge)
        if operation.name not in ("add", "add_") or len(operation.inputs) != 2:
            return False
        return operation.outputs[0].shape == edge.value.shape and operation.attributes.get("alpha", 1) == 1

    def _branch(self, addition: Operation, stream: Path) -> str:
        """The module that computed what is added to the stream, seen from the module that adds it."""
        (other,) = [v for path, v in addition.inputs.items() if path != stream]
        maker = None if other.producer is None else self.trace.operations[other.producer]
        module = maker.module if maker is not None else None
        while module is not None and module.parent is not None and module.parent is not addition.module:
            module = module.parent
        if module is not None and module.path:
            return module.path
        return maker.where if maker is not None else other.title


def _run_order(operation: Operation) -> tuple[int, int]:
    """A step of autograd's own follows the kernel during which it was made."""
    return (operation.id, -1) if operation.owner is None else (operation.owner.id, _order(operation))


def _order(operation: Operation) -> int:
    return operation.sequence if operation.sequence is not None else -1


def replay(trace: Trace, index: int, changed: Mapping[int, Callable[[Tensor], Tensor]], result: Value) -> Tensor:
    """The forward pass again in float64, operation by operation, with some values changed.

    changed: value id -> what is made of it (a float64 tensor). Changes run along the edges that gradients of backward
    pass `index` came back on; everything else, behind a detach for instance, keeps its captured values.
    Raises TraceError if an operation cannot be run again.
    """
    edges = {(edge.target, edge.path) for edge in trace.edges if index in edge.gradients}
    fresh: dict[int, Tensor] = {}
    for operation in sorted(trace.operations, key=_run_order):
        on_path = {p: v for p, v in operation.inputs.items() if (operation.id, p) in edges}
        touched = {p: v for p, v in on_path.items() if v.id in fresh or v.id in changed}
        if not touched:
            fresh |= _handed_on(operation, fresh)
            continue
        if operation.kind == "function" and not gives_what_it_gave(operation, Local.of(operation)):
            raise TraceError(
                f"expected {operation.name} to give the same again, got other outputs: chance or hidden state inside."
            )
        inputs = {p: fresh[v.id] if v.id in fresh else changed[v.id](v.read().double()) for p, v in touched.items()}
        fresh |= {v.id: z for v, z in zip(operation.outputs, run_again(operation, inputs))}
        if result.id in fresh:
            return fresh[result.id]
    raise TraceError(f"expected the changed values to reach {result.title}, got no path to it.")


def _handed_on(operation: Operation, fresh: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """What changes along with the input of a kernel that autograd does not see: a value that is detached and then put
    back into the graph (what a node saved, read by a derivative of it), and one that is written to under no_grad
    (`F.cosine_similarity` clamps its norms so), whose gradient is handed on as if nothing had been added."""
    before, after = operation.inputs.get((0,)), next(iter(operation.outputs), None)
    if before is None or after is None or before.id not in fresh:
        return {}
    if operation.name == "detach":
        return {after.id: fresh[before.id]}
    if before.source is not None and before.source is after.source:
        return {after.id: fresh[before.id] + (after.read().double() - before.read().double())}
    return {}
