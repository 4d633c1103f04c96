"""What a trace is made of: calls, operations, edges, gradients, modules. `capture` writes it; everything else reads it.

ApiCall      what the program said: `F.linear`, `+`, `Tensor.view`, with its line
Operation    what PyTorch ran for it: one kernel (`aten.addmm`), or one custom autograd function
Flow         one backward pass through one operation: gradients that came in, gradients that went out
Edge         a value on its way to an operation that read it, and the gradient on its way back
FanOut       a value read more than once: its gradient is a sum (the residual stream, tied weights)
Accumulation a gradient arriving in a parameter's `.grad`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload

from lightwell.errors import TraceError
from lightwell.glass.call import Call, Path
from lightwell.glass.values import Value

Phase = Literal["forward", "backward", "recompute", "optimizer"]
SEQUENCES = (list, tuple)  # once: `list | tuple` is a new object each time it is written


class Module:
    """One module of the model: its path, its class, where it sits. `operations` are those run directly in it."""

    __slots__ = ("calls", "children", "kind", "operations", "parent", "path")

    def __init__(self, path: str, kind: str, parent: Module | None) -> None:
        self.path = path
        self.kind = kind
        self.parent = parent
        self.children: list[Module] = []
        self.operations: list[int] = []
        self.calls = 0
        if parent is not None:
            parent.children.append(self)

    def __repr__(self) -> str:
        return f"<Module {self.path or '(root)'}: {self.kind}>"


class ApiCall:
    """One call that the program made: its name, its line of source (the first one outside PyTorch), its module."""

    __slots__ = ("file", "function", "id", "line", "module", "name", "operations")

    def __init__(self, name: str) -> None:
        self.id = -1
        self.name = name
        self.file = ""
        self.line = 0
        self.function = ""
        self.module: Module | None = None
        self.operations: list[int] = []

    def __repr__(self) -> str:
        return f"<ApiCall {self.id}: {self.name} at {self.file}:{self.line}>"


@dataclass(slots=True)
class Flow:
    """One backward pass through one operation: the gradient of each output, and of each input by its path.

    None: no gradient came (or was asked for) there.
    """

    index: int
    upstream: list[Value | None]
    downstream: dict[Path, Value | None]


class Operation:
    """One kernel call, one custom autograd function, or one step that autograd made by itself (`kind`).

    `args` and `kwargs` are the arguments with a Value in the place of each tensor. `sequence` is autograd's number of
    the node that belongs to it and `node` that node's name ("" if it needs no gradient). `parent` is the custom
    function inside which it ran, `again` the operation that it recomputes, `owner` the kernel during which autograd
    made a step of its own. `ran` are the kernels of its node, with the shapes of their results.
    """

    __slots__ = (
        "again",
        "args",
        "call",
        "differentiable",
        "file",
        "flows",
        "function",
        "id",
        "kind",
        "kwargs",
        "line",
        "module",
        "name",
        "node",
        "op",
        "outputs",
        "owner",
        "parent",
        "phase",
        "ran",
        "sequence",
    )

    def __init__(self, identity: int, kind: Literal["kernel", "function", "autograd"], name: str) -> None:
        self.id = identity
        self.kind = kind
        self.name = name
        self.op: OpOverload | None = None
        self.function: Any = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.outputs: tuple[Value, ...] = ()
        self.call: ApiCall | None = None
        self.module: Module | None = None
        self.file = ""
        self.line = 0
        self.phase: Phase = "forward"
        self.sequence: int | None = None
        self.node = ""
        self.parent: int | None = None
        self.owner: Operation | None = None
        self.again: int | None = None
        self.flows: list[Flow] = []
        self.ran: list[tuple[OpOverload, list[torch.Size]]] = []
        self.differentiable: dict[Path, tuple[int | None, int]] = {}  # path -> (operation autograd leads to, output)

    def __repr__(self) -> str:
        return f"<Operation {self.id}: {self.name} {self.place}>"

    @property
    def backward(self) -> list[tuple[str, list[list[int]]]]:
        """The kernels that its node ran, each with the shapes of its results."""
        return [(str(op), [list(shape) for shape in shapes]) for op, shapes in self.ran]

    @property
    def place(self) -> str:
        """Where it is: module path and line, for people."""
        parts = [self.module.path] if self.module is not None and self.module.path else []
        if self.file:
            parts.append(f"{self.file.rsplit('/', 1)[-1]}:{self.line}")
        return " ".join(parts)

    @property
    def where(self) -> str:
        """The path of its module, or its name and place where the path is empty."""
        return self.module.path if self.module is not None and self.module.path else f"{self.name} {self.place}".strip()

    @property
    def inputs(self) -> dict[Path, Value]:
        """Every tensor among the arguments, by its path."""
        found: dict[Path, Value] = {}
        for key, argument in _arguments(self.args, self.kwargs):
            if isinstance(argument, Value):
                found[(key,)] = argument
            elif isinstance(argument, SEQUENCES):
                found |= {(key, i): item for i, item in enumerate(argument) if isinstance(item, Value)}
        return found

    @property
    def attributes(self) -> dict[str, Any]:
        """Every argument that is not a tensor, by the name its schema gives it."""
        names = [a.name for a in self.op._schema.arguments] if self.op is not None else []
        named = {names[i] if i < len(names) else str(i): a for i, a in enumerate(self.args)} | dict(self.kwargs)
        return {name: a for name, a in named.items() if not _has_values(a)}

    @property
    def is_view(self) -> bool:
        return self.op is not None and self.op.is_view

    @property
    def writes(self) -> list[Path]:
        """Paths of the arguments that it writes into."""
        if self.op is None:
            return []
        schema = self.op._schema.arguments
        written = {i if i < len(self.args) else a.name for i, a in enumerate(schema) if _is_written(a)}
        return [path for path in self.inputs if path[0] in written]

    def broadcast(self, path: Path) -> bool:
        """Whether this input's elements served several outputs by broadcasting, so that its gradient is a sum."""
        pointwise = self.op is not None and torch.Tag.pointwise in self.op.tags
        return pointwise and bool(self.outputs) and self.inputs[path].shape != self.outputs[0].shape

    def kernel(self) -> Call:
        """The captured call, to be replayed. Raises TraceError if a value was not kept, or for other than a kernel."""
        if self.op is None:
            raise TraceError(f"expected a kernel call, got {self.name}, which is a {self.kind}.")
        args = tuple(_read(a) for a in self.args)
        kwargs = {name: _read(a) for name, a in self.kwargs.items()}
        return Call(self.op, args, kwargs, tuple(v.read() for v in self.outputs))


@dataclass(frozen=True, slots=True)
class Edge:
    """A value from the operation that made it (None: from outside) to an operation that read it at `path`.

    `gradients` are what came back along it, one for each backward pass that used it.
    """

    id: int
    value: Value
    source: int | None
    target: int
    path: Path
    gradients: dict[int, Value] = field(default_factory=dict)

    @property
    def gradient(self) -> Value | None:
        """The gradient of the last backward pass along this edge."""
        return self.gradients[max(self.gradients)] if self.gradients else None


@dataclass(frozen=True, slots=True)
class FanOut:
    """A value that several operations read: in backward pass `index` its gradient `total` is the sum over `edges`."""

    value: Value
    index: int
    edges: list[Edge]
    total: Value | None


@dataclass(slots=True)
class Accumulation:
    """A gradient arriving at a parameter in backward pass `index`: `.grad` before (None: there was none), what arrived,
    and `.grad` after.
    """

    index: int
    parameter: Value
    before: Value | None
    increment: Value | None
    after: Value | None


@dataclass(slots=True)
class Pass:
    """One run of the backward engine: what it started from, and why it ended early ("" if it did not)."""

    index: int
    roots: list[Value]
    seeds: list[Value | None]
    create_graph: bool = False
    failure: str = ""
    restricted: bool = False
    captured: dict[int, Tensor] = field(default_factory=dict)  # torch.autograd.grad: value id -> what it returned


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[int | str, Any]]:
    yield from enumerate(args)
    yield from kwargs.items()


def _has_values(argument: Any) -> bool:
    if isinstance(argument, SEQUENCES):
        return any(isinstance(item, Value) for item in argument)
    return isinstance(argument, Value)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _read(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.read()
    if isinstance(argument, SEQUENCES):
        return type(argument)(_read(item) for item in argument)
    return argument
