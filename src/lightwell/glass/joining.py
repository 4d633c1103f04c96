"""Joins autograd's nodes to the operations they belong to, and catches the gradients on their way through.

PyTorch numbers the nodes of its backward graph as it makes them, just before it runs the kernel: an operation that the
recorder sees while the counter stands at n + 1, and stood lower before, owns node n. A second key, the node's name or
the graph function on the operation's own result, must agree; where it does not, the disagreement is reported and the
node is shown as a step of its own, never guessed. Hooks are put on nodes, not tensors: a tensor's hooks stay behind
when it is written in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from lightwell.glass.call import Path
from lightwell.glass.recording import Accumulation, Flow, Operation, Pass
from lightwell.glass.values import Value, Values

# Holding on to a gradient that autograd wants to hand over as a parameter's `.grad` forces it to make a copy. Up to
# this size the copy is cheaper than the bookkeeping; above it the parameter's own `.grad` is read afterwards.
HELD_BYTES = 1 << 16

# Nodes that no kernel has: a view that was written to, and the view made again afterwards.
_MADE_BY_AUTOGRAD = ("CopySlices", "AsStridedBackward0")

Gradients = Sequence[Tensor | None]


class _Link:
    """One node, its operation, and which output each incoming gradient is of, which input each outgoing."""

    __slots__ = ("inputs", "leaves", "operation", "outputs", "paths")

    def __init__(
        self,
        operation: Operation,
        inputs: dict[Path, Value],
        outputs: list[int | None],
        paths: list[Path | None],
    ) -> None:
        self.operation = operation
        self.inputs = inputs
        self.outputs = outputs
        self.paths = paths
        self.leaves: list[Any] = []  # the parameter node an edge leads to, where its gradient must not be held


class Nodes:
    """Every node of the traced graphs, hooked while the trace is open."""

    def __init__(self, operations: list[Operation], values: Values, disagreements: list[str]) -> None:
        self._ran: dict[int, list[Operation]] = {}  # newest node's number -> what ran before the next node was made
        self.accumulations: list[Accumulation] = []
        self._operations = operations
        self._values = values
        self._disagreements = disagreements
        self._links: dict[Any, _Link | None] = {}  # None: a parameter's own node
        self._handles: list[Any] = []
        self._passes: list[Pass] = []
        self._before: dict[Any, Value | None] = {}
        self._waiting: dict[Any, tuple[Flow, Path]] = {}

    def ran(self, operation: Operation, newest: int) -> None:
        """An operation is running, and the newest node has this number: it is the operation's own, if it has one."""
        self._ran.setdefault(newest, []).append(operation)

    def watch(self, roots: Iterable[Any]) -> None:
        """Hook every node below the roots that is not hooked yet."""
        new, fan_in = self._walk(roots)
        links: list[tuple[Any, _Link]] = []
        for node in new:
            if hasattr(node, "variable"):
                self._links[node] = None
                self._handles.append(node.register_prehook(partial(_quietly, self._before_accumulation, node)))
                self._handles.append(node.register_hook(partial(_quietly, self._after_accumulation, node)))
            else:
                self._links[node] = link = self._link(node)
                links.append((node, link))
                nexts = [n for n, _ in node.next_functions]
                link.leaves = [n if n in fan_in and hasattr(n, "variable") and fan_in[n] == 1 else None for n in nexts]
                self._handles.append(node.register_hook(partial(_quietly, self._arrived, link)))
        for own_step in (False, True):  # what an own step gives is known from the kernels that read it
            for node, link in links:
                if (link.operation.kind == "autograd") == own_step:
                    self._note_sources(node, link)

    def begin(self, backward_pass: Pass) -> None:
        self._passes.append(backward_pass)

    def end(self) -> None:
        """The engine is done; edges still waiting have the gradients that torch.autograd.grad gives back."""
        done = self._passes.pop()
        for node, (flow, path) in self._waiting.items():
            captured = done.captured.get(self._values.of(node.variable).id)
            flow.downstream[path] = None if captured is None else self._values.add_gradient(captured)
        self._waiting.clear()

    def running(self, node: Any) -> Operation | None:
        """The operation whose node is at work. When a node has handed on its gradients, what still runs in its name is
        the engine's own addition where several gradients meet: the trace shows that as a fan-out.
        """
        link = self._links.get(node)
        if link is None or (link.operation.flows and link.operation.flows[-1].index == self._passes[-1].index):
            return None
        return link.operation

    def remove(self) -> None:
        """Take every hook out again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._links.clear()
        self._before.clear()
        self._waiting.clear()

    def _walk(self, roots: Iterable[Any]) -> tuple[list[Any], Counter[Any]]:
        new, fan_in, stack, seen = [], Counter[Any](), list(roots), set()
        while stack:
            node = stack.pop()
            if node in seen or node in self._links:
                continue
            seen.add(node)
            new.append(node)
            for following, _ in node.next_functions:
                if following is not None:
                    fan_in[following] += 1
                    stack.append(following)
        return new, fan_in

    def _link(self, node: Any) -> _Link:
        number = node._sequence_nr()
        candidates = self._ran.get(number, [])
        if not candidates:  # to keep what a write destroys, PyTorch copies it, and the copy has a node in between
            following = self._ran.get(number + 1, [])
            candidates = [o for o in following[1:] if following[0].name == "clone" and o.writes]
        operation = next((o for o in candidates if _belongs(o, node)), None)
        if operation is None:
            if candidates and not node.name().endswith(_MADE_BY_AUTOGRAD):
                names = ", ".join(f"{o.name} ({o.place})" for o in candidates[:3])
                self._disagreements.append(
                    f"node {node.name()} has number {number}, while {names} ran, but neither its name nor their "
                    "results say that it belongs there; it is shown as a step of its own"
                )
            return self._own_step(node)
        operation.sequence = number
        operation.node = node.name()
        inputs = operation.inputs
        paths = _input_paths(operation, inputs, node)
        if paths is None:
            self._disagreements.append(
                f"{operation.name} ({operation.place}) has {len(node.next_functions)} gradients for "
                f"{len(inputs)} tensor inputs, and which belongs to which is not clear; they are not shown"
            )
            paths = [None] * len(node.next_functions)
        return _Link(operation, inputs, _output_indices(operation, node), paths)

    def _own_step(self, node: Any) -> _Link:
        """A node without a kernel of its own: an in-place write through a view, a view made again, a C++ function."""
        operation = Operation(len(self._operations), "autograd", node.name().rsplit("::", 1)[-1])
        operation.node = node.name()
        operation.sequence = node._sequence_nr()
        self._operations.append(operation)
        owner = self._nearest(node._sequence_nr())
        operation.owner = owner
        if owner is not None:
            operation.call, operation.module = owner.call, owner.module
            operation.file, operation.line = owner.file, owner.line
        operation.kwargs["next"] = [None] * len(node.next_functions)
        paths: list[Path | None] = [("next", i) for i in range(len(node.next_functions))]
        if owner is not None:
            operation.outputs = self._written_whole(owner, node)
        return _Link(operation, {}, [0], paths)

    def _written_whole(self, owner: Operation, node: Any) -> tuple[Value, ...]:
        """What a write through a view made of the tensor behind the view."""
        if not node.name().endswith("CopySlices"):
            return ()
        made = [v for v in self._values.all if v.producer == owner.id and v not in owner.outputs]
        return tuple(v for v in made if list(v.shape) == list(node._input_metadata[0].shape))[:1]

    def _nearest(self, sequence: int) -> Operation | None:
        """The operation during which the node was made: the last one that began before it."""
        earlier = [n for n in self._ran if n < sequence]
        return self._ran[max(earlier)][-1] if earlier else None

    def _note_sources(self, node: Any, link: _Link) -> None:
        """Where autograd says each input came from, which must be where the values say it came from."""
        operation = link.operation
        inputs = link.inputs
        for path, (following, number) in zip(link.paths, node.next_functions):
            source = self._links.get(following)
            if path is None or following is None:
                continue
            if operation.kind == "autograd":
                self._adopt_input(operation, path, following, number)
            made_by = source.operation if source is not None else None
            output = source.outputs[number] if source is not None and number < len(source.outputs) else None
            operation.differentiable[path] = (made_by.id if made_by else None, output or 0)
            value = inputs.get(path)
            if value is not None and made_by is not None and made_by.kind == "autograd" and not made_by.outputs:
                made_by.outputs = (value,)
            if value is None or made_by is None or made_by.kind == "autograd" or operation.kind == "autograd":
                continue
            if value.producer != made_by.id:
                self._disagreements.append(
                    f"input {path} of {operation.name} ({operation.place}): autograd takes it from {made_by.name} "
                    f"({made_by.place}), the values from operation {value.producer}"
                )

    def _adopt_input(self, operation: Operation, path: Path, following: Any, number: int) -> None:
        """The input of an autograd-only step is what the next node gives, since no kernel call names it."""
        source = self._links.get(following)
        value: Value | None = None
        if source is None and hasattr(following, "variable"):
            value = self._values.of(following.variable)
        elif source is not None:
            output = source.outputs[number] if number < len(source.outputs) else None
            made = source.operation.outputs
            value = made[output] if output is not None and output < len(made) else None
        operation.kwargs["next"][int(path[1])] = value

    def _arrived(self, link: _Link, grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        """A node has run: `grad_outputs` came in, `grad_inputs` go out (PyTorch names them from the forward side)."""
        add = self._values.add_gradient
        operation = link.operation
        upstream: list[Value | None] = [None] * max(1, len(operation.outputs))
        for index, gradient in zip(link.outputs, grad_outputs):
            if gradient is not None and index is not None:
                upstream[index] = add(gradient)
        flow = Flow(self._passes[-1].index, upstream, {})
        for path, leaf, gradient in zip(link.paths, link.leaves, grad_inputs):
            if path is None:
                continue
            if gradient is None:
                flow.downstream[path] = None
            elif leaf is not None and _is_large(gradient):
                self._waiting[leaf] = (flow, path)
            else:
                flow.downstream[path] = add(gradient)
        operation.flows.append(flow)

    def _before_accumulation(self, node: Any, gradients: Gradients) -> None:
        existing = node.variable.grad
        self._before[node] = None if existing is None else self._values.of(existing)
        gradient = gradients[0]
        if existing is not None and gradient is not None and node in self._waiting:
            flow, path = self._waiting.pop(node)
            flow.downstream[path] = self._values.add_gradient(gradient)

    def _after_accumulation(self, node: Any, _: Sequence[Any], gradients: Gradients) -> None:
        if gradients[0] is None:
            return
        before = self._before.pop(node, None)
        grad = node.variable.grad
        after = None if grad is None else self._values.of(grad)
        waiting = self._waiting.pop(node, None)
        if before is not None or not _is_large(gradients[0]):
            increment: Value | None = self._values.add_gradient(gradients[0])
        else:
            increment = after
        if waiting is not None:
            flow, path = waiting
            flow.downstream[path] = increment
        parameter = self._values.of(node.variable)
        self.accumulations.append(Accumulation(self._passes[-1].index, parameter, before, increment, after))


def _is_large(gradient: Tensor) -> bool:
    return gradient.layout == torch.strided and gradient.nbytes > HELD_BYTES


def _quietly(hook: Callable[..., None], *args: Any) -> None:
    """Reading a tensor's shape in a hook is not a call of the program."""
    with torch._C.DisableTorchFunction():
        hook(*args)


def _belongs(operation: Operation, node: Any) -> bool:
    if operation.kind == "function":
        return getattr(type(node), "_forward_cls", None) is operation.function
    if _alike(operation.name, node.name()):
        return True
    return any(v.source is not None and v.source.grad_fn is node for v in operation.outputs)


@cache
def _alike(operation: str, node: str) -> bool:
    """Whether the name of a node is that of an operation: "AddmmBackward0" and "addmm"."""
    name, ours = node.rsplit("::", 1)[-1].split("Backward")[0].lower(), operation.replace("_", "").lower()
    return bool(name) and (ours.startswith(name) or name.startswith(ours))


def _output_indices(operation: Operation, node: Any) -> list[int | None]:
    """For each gradient that the node takes, the output of the operation that it is the gradient of."""
    metadata = getattr(node, "_input_metadata", None)
    if operation.kind == "function" or metadata is None:
        return list(range(len(operation.outputs)))
    indices: list[int | None] = []
    outputs = operation.outputs
    if len(metadata) == len(outputs) == 1 and outputs[0].is_float:
        return [0 if list(metadata[0].shape) == list(outputs[0].shape) else None]
    remaining = [i for i, v in enumerate(outputs) if v.is_float]
    for entry in metadata:
        found = next((i for i in remaining if tuple(outputs[i].shape) == tuple(entry.shape)), None)
        indices.append(found)
        if found is not None:
            remaining = [i for i in remaining if i > found]
    return indices


def _input_paths(operation: Operation, inputs: dict[Path, Value], node: Any) -> list[Path | None] | None:
    """For each gradient that the node gives, the input it is the gradient of; None if that cannot be told."""
    nexts = [n for n, _ in node.next_functions]
    if operation.kind == "function":
        return list(inputs) if len(inputs) == len(nexts) else None
    inputs = {path: v for path, v in inputs.items() if v.is_float and path[0] != "out"}
    if len(inputs) == len(nexts):
        return list(inputs)
    asking = iter([path for path, v in inputs.items() if v.requires_grad])
    paths = [None if n is None else next(asking, None) for n in nexts]
    unclear = any(n is not None and path is None for n, path in zip(nexts, paths)) or next(asking, None) is not None
    return None if unclear else paths
