"""The chain rule for a single number, link by link: dL/dw = dL/da x da/dz x dz/dw.

Where everything between a number and the loss is a single number too, its gradient is a sum over paths, and each path a
product of local derivatives. Links are drawn between the values that the program has names for: the variables of the
function that opened the trace, or the names that its source lines give them. What has no name is multiplied into the
link around it.
"""

from __future__ import annotations

import ast
import linecache
import math
from dataclasses import dataclass

from lightwell.glass.graph import Graph
from lightwell.glass.recording import Edge, Operation
from lightwell.glass.values import Value

MOST_LINKS = 64
MOST_PATHS = 16


@dataclass(frozen=True)
class Link:
    """One factor: how fast `upper` changes with `lower`. `operations` are those it runs through, from below."""

    upper: str
    lower: str
    factor: float
    operations: list[Operation]

    @property
    def text(self) -> str:
        return f"d{self.upper}/d{self.lower}"


@dataclass(frozen=True)
class Chain:
    """One path from the loss down to the number: its links, and their product."""

    links: list[Link]

    @property
    def value(self) -> float:
        return math.prod(link.factor for link in self.links)


def chains(graph: Graph, value: Value, root: Value) -> list[Chain] | None:
    """Every path from `root` down to `value`; None if there are too many, or more than single numbers between."""
    between = graph.above(value)
    numbers = [v for operation in between for v in (*operation.inputs.values(), *operation.outputs) if v.is_float]
    if value.numel != 1 or len(between) > MOST_LINKS or any(v.numel != 1 for v in numbers if graph.readers(v)):
        return None
    found: list[list[Edge]] = []
    if not _paths(graph, value, root, [], found):
        return None
    names = Naming(graph, value, root)
    return [Chain(_links(graph, path, names)) for path in found]


class Naming:
    """What the values between a number and the loss are called; "" for those that nothing names."""

    def __init__(self, graph: Graph, value: Value, root: Value) -> None:
        self._names = {root.id: "L", value.id: value.name or "x"}
        outputs = [(o, v) for o in graph.above(value) for v in o.outputs if v is not root]
        for operation, output in outputs:
            self._names[output.id] = output.name or _assigned_name(graph, operation)
        if not any(self._names[v.id] for _, v in outputs):
            for operation, output in outputs:
                self._names[output.id] = operation.name
        self._number_repeats()

    def _number_repeats(self) -> None:
        """`x = x * 2` gives several values one name: x_1, x_2 in the order of the program."""
        given = list(self._names.values())
        seen: dict[str, int] = {}
        for identity, name in sorted(self._names.items()):
            if name and given.count(name) > 1:
                seen[name] = seen.get(name, 0) + 1
                self._names[identity] = f"{name}_{seen[name]}"

    def of(self, value: Value) -> str:
        return self._names.get(value.id, "")


def _paths(graph: Graph, value: Value, root: Value, walked: list[Edge], found: list[list[Edge]]) -> bool:
    """All ways up; False if there are more than MOST_PATHS."""
    if value is root:
        found.append(list(walked))
        return len(found) <= MOST_PATHS
    for edge in graph.readers(value):
        for output in graph.operation(edge).outputs:
            reached = output is root or graph.readers(output)
            if reached and not _paths(graph, output, root, [*walked, edge], found):
                return False
    return True


def _links(graph: Graph, path: list[Edge], names: Naming) -> list[Link]:
    """From the loss down. Unnamed values are passed over, their factors multiplied together."""
    links: list[Link] = []
    lower, factor, through = names.of(path[0].value), 1.0, list[Operation]()
    for i, edge in enumerate(path):
        operation = graph.operation(edge)
        above = path[i + 1].value if i + 1 < len(path) else operation.outputs[0]
        output = next(k for k, v in enumerate(operation.outputs) if v is above)
        column = graph.local(operation).column(edge.path, (0,) * len(edge.value.shape))
        factor *= float(column[output].sum())
        through.append(operation)
        if names.of(above):
            links.append(Link(names.of(above), lower, factor, through))
            lower, factor, through = names.of(above), 1.0, []
    return links[::-1]


def _assigned_name(graph: Graph, operation: Operation) -> str:
    """The variable that the source line gives the result: the last operation of `z = w * x + b` makes z."""
    call = operation.call
    if call is None or not operation.file or operation.parent is not None:
        return ""
    following = graph.trace.calls[call.id + 1] if call.id + 1 < len(graph.trace.calls) else None
    if operation.id != call.operations[-1]:
        return ""
    if following is not None and (following.file, following.line) == (call.file, call.line):
        return ""
    try:
        (statement,) = ast.parse(linecache.getline(operation.file, operation.line).strip()).body
    except (SyntaxError, ValueError):  # a line of a longer statement
        return ""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return ""
