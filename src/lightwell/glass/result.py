"""`Trace`: a recorded step, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightwell.errors import TraceError
from lightwell.glass.recording import Accumulation, ApiCall, Edge, FanOut, Module, Operation, Pass
from lightwell.glass.values import Value, Values

if TYPE_CHECKING:
    from lightwell.glass.explain import Explanation
    from lightwell.glass.origin import Origins
    from lightwell.glass.verify import Verification


MOST_IN_A_CELL = 2000  # operations


class Trace:
    """One recorded step. Empty until the `with` block has ended.

    operations    every operation in the order in which it ran
    calls         what the program called for them
    edges         values from the operation that made them to those that read them, with the gradients that came back
    fan_outs      values read more than once, with the sum of the gradients that came back
    modules       the modules that ran, each with its parent
    accumulations gradients that arrived in a parameter's `.grad`
    passes        runs of the backward engine
    notes, disagreements   what a reader must know; where the layers of the recording did not agree (empty: nowhere)
    """

    def __init__(self) -> None:
        self.closed = False
        self.level = ""
        self.eager_instead_of_compiled = False
        self.values: Sequence[Value] = ()
        self.operations: list[Operation] = []
        self.calls: list[ApiCall] = []
        self.modules: list[Module] = []
        self.passes: list[Pass] = []
        self.accumulations: list[Accumulation] = []
        self.disagreements: list[str] = []
        self.notes: list[str] = []
        self._values = Values()

    def fill(
        self,
        *,
        level: str,
        values: Values,
        operations: list[Operation],
        calls: list[ApiCall],
        modules: list[Module],
        passes: list[Pass],
        accumulations: list[Accumulation],
        disagreements: list[str],
        notes: list[str],
        eager: bool,
    ) -> None:
        """The recorder hands over what it recorded."""
        self.closed = True
        self.level, self.eager_instead_of_compiled = level, eager
        self._values, self.values = values, values.all
        self.operations, self.calls, self.modules = operations, calls, modules
        self.passes, self.accumulations = passes, accumulations
        self.disagreements, self.notes = disagreements, notes

    @property
    def loss(self) -> Value | None:
        """What the last backward pass started from."""
        roots = self.passes[-1].roots if self.passes else []
        return roots[0] if roots else None

    @cached_property
    def edges(self) -> list[Edge]:
        edges: list[Edge] = []
        for operation in self.operations:
            for path, value in operation.inputs.items():
                found = {f.index: g for f in operation.flows if (g := f.downstream.get(path)) is not None}
                edges.append(Edge(len(edges), value, value.producer, operation.id, path, found))
        return edges

    @cached_property
    def readers(self) -> dict[int, list[Edge]]:
        """Value id -> the edges that lead away from it."""
        found: dict[int, list[Edge]] = {}
        for edge in self.edges:
            found.setdefault(edge.value.id, []).append(edge)
        return found

    @cached_property
    def fan_outs(self) -> list[FanOut]:
        found = []
        for edges in self.readers.values():
            for index in sorted({i for edge in edges for i in edge.gradients}):
                parts = [edge for edge in edges if index in edge.gradients]
                if len(parts) > 1:
                    value = parts[0].value
                    found.append(FanOut(value, index, parts, self.gradient_of(value, index)))
        return found

    @cached_property
    def _makers(self) -> dict[int, list[tuple[Operation, int]]]:
        """Value id -> the operations that it is an output of: a kernel, and perhaps a step of autograd's own."""
        found: dict[int, list[tuple[Operation, int]]] = {}
        for operation in self.operations:
            for i, value in enumerate(operation.outputs):
                found.setdefault(value.id, []).append((operation, i))
        return found

    def gradient_of(self, value: Value, index: int) -> Value | None:
        """The whole gradient of a value in one backward pass, as autograd had it; None if there is none."""
        for operation, output in self._makers.get(value.id, ()):
            for flow in operation.flows:
                if flow.index == index and output < len(flow.upstream):
                    return flow.upstream[output]
        for accumulation in self.accumulations:
            if accumulation.index == index and accumulation.parameter is value:
                return accumulation.increment
        captured = [p.captured[value.id] for p in self.passes if p.index == index and value.id in p.captured]
        return self._values.add_gradient(captured[0]) if captured else None

    def value_of(self, tensor: Tensor) -> Value:
        """The last value that this tensor had in the trace. Raises TraceError if the trace has not seen it."""
        return self.values_of(tensor)[-1]

    def values_of(self, tensor: Tensor) -> list[Value]:
        """Every value that this tensor had, oldest first: it has a new one after each write in place."""
        self.require_closed()
        if not isinstance(tensor, Tensor):
            raise TraceError(f"expected a tensor, got {type(tensor).__name__}.")
        found = self._values.versions_of(tensor) or self._values.at(tensor)
        if not found:
            raise TraceError(
                f"expected a tensor that the traced step used, got one of shape {list(tensor.shape)} that it did not.",
                "Run forward and backward with it inside the `with lightwell.trace()` block.",
            )
        return found

    def explain(
        self,
        tensor: Tensor,
        index: Sequence[int] | int | None = None,
        *,
        depth: int = 1,
        top: int = 5,
        language: str = "en",
        backward: int | None = None,
    ) -> Explanation:
        """How the gradient of a tensor, or of one element of it, came about: see `explain.explain`."""
        from lightwell.glass.explain import explain

        return explain(self, tensor, index, depth=depth, top=top, language=language, backward=backward)

    def verify(
        self,
        *,
        seconds: float | None = None,
        differences: bool = True,
        whole: bool = True,
        language: str = "en",
        progress: Callable[[int, int | None, str], None] | None = None,
    ) -> Verification:
        """Every gradient checked three ways: see `verify.verify`."""
        from lightwell.glass.verify import verify

        return verify(self, seconds=seconds, differences=differences, whole=whole, language=language, progress=progress)

    def origins(self, language: str = "en") -> Origins:
        """Where a NaN or an infinity was born: see `origin.origins`."""
        from lightwell.glass.origin import origins

        return origins(self, language)

    def to_dict(self, language: str = "en") -> dict[str, Any]:
        """Plain data of the schema in docs/trace-format.md."""
        from lightwell.glass.export import as_dict

        self.require_closed()
        return as_dict(self, language)

    def save(
        self,
        path: str | Path,
        *,
        verification: Verification | None = None,
        title: str = "",
        language: str = "en",
    ) -> Path:
        """Write the trace to `path`: .json (the schema), .html (a page that needs nothing else), .dot (Graphviz).

        verification: shown in the page, operation by operation.
        """
        from lightwell.glass.export import save

        self.require_closed()
        checked = None if verification is None else verification.to_dict()
        return save(self, path, verification=checked, title=title, language=language)

    def _repr_html_(self) -> str:
        """In a notebook: the page of the trace, or in words what it holds if that is too much for a cell."""
        from lightwell.glass import notebook
        from lightwell.glass.page import page

        if not self.closed or len(self.operations) > MOST_IN_A_CELL:
            return notebook.text(str(self))
        return notebook.frame(page(self.to_dict(), title="trace"), str(self).splitlines()[0])

    def require_closed(self) -> None:
        """Raises TraceError inside the `with` block."""
        if not self.closed:
            raise TraceError(
                "expected the trace to be closed, got a question inside its block.", "Ask after the block."
            )

    def __str__(self) -> str:
        if not self.closed:
            return "a trace that is still open"
        phases: dict[str, int] = {}
        for operation in self.operations:
            phases[operation.phase] = phases.get(operation.phase, 0) + 1
        counts = ", ".join(f"{n} {phase}" for phase, n in phases.items())
        kernels = sum(len(operation.ran) for operation in self.operations)
        lines = [
            f"{len(self.operations)} operations ({counts}) for {len(self.calls)} calls in {len(self.modules)} modules; "
            f"{len(self.passes)} backward passes with {kernels} kernels; {len(self.edges)} edges, "
            f"{len(self.fan_outs)} fan-outs"
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), *self.disagreements])

    def __repr__(self) -> str:
        return f"<Trace: {len(self.operations)} operations>" if self.closed else "<Trace, open>"
