"""Two steps that autograd makes by itself when a view is written to, `y[1:].mul_(5)`.

`WrittenView` (autograd's CopySlices): the whole of y after the write is y before, with the part that the view shows
replaced by what the kernel made of it. Gradients outside the part are handed on; those inside go through the kernel.
`ViewAgain` (AsStridedBackward): the view itself afterwards, now a part of the written whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lightwell.errors import TraceError
from lightwell.glass.call import Path
from lightwell.glass.local import Local, LocalKernel, Replacements, Upstream
from lightwell.glass.recording import Operation
from lightwell.glass.values import Value

BASE: Path = ("next", 0)


@dataclass(frozen=True)
class Window:
    """Which elements of a base a view shows: for each of the view's, its number in the base, counted row by row."""

    shape: torch.Size
    places: Tensor

    @classmethod
    def between(cls, base: Value, view: Value) -> Window:
        whole, part = base.source, view.source
        if whole is None or part is None:
            raise TraceError("expected a view and its base, got values whose tensors were not kept.")
        numbers = torch.arange(whole.numel(), device=whole.device).reshape(whole.shape)
        laid_out = torch.empty_strided(whole.shape, whole.stride(), dtype=torch.int64, device=whole.device)
        offset = int(part.storage_offset()) - int(whole.storage_offset())
        return cls(whole.shape, laid_out.copy_(numbers).as_strided(part.shape, part.stride(), offset).clone())

    def part(self, base: Tensor) -> Tensor:
        return base.reshape(-1)[self.places]

    def put(self, base: Tensor, part: Tensor) -> Tensor:
        """The base with other numbers in the view's place."""
        return base.reshape(-1).index_put((self.places,), part).reshape(self.shape)


class WrittenView(Local):
    """y before and what the kernel read, to y after."""

    def __init__(self, operation: Operation, dtype: torch.dtype) -> None:
        owner, values = operation.owner, operation.inputs
        if owner is None or owner.kind != "kernel" or not operation.outputs or (0,) not in owner.inputs:
            raise TraceError(f"expected a write through a view, got {operation.name} without its kernel.")
        self.dtype, self.kernel = dtype, LocalKernel(owner, dtype)
        self.source = self.kernel.source
        whole = values.get(BASE, operation.outputs[0])  # a base that asks for no gradient: outside of the part it stays
        self.base = whole.read().to(dtype)
        self.window = Window.between(whole, owner.inputs[(0,)])
        read = list(self.kernel.inputs)
        self.paths = {("next", i): path for i, path in enumerate(read) if i > 0 and ("next", i) in values}
        self.inputs = ({BASE: self.base} if BASE in values else {}) | {
            p: self.kernel.inputs[q] for p, q in self.paths.items()
        }
        self.outputs = self.replay({})

    def replay(self, replacements: Replacements) -> tuple[Tensor, ...]:
        inputs = self.inputs | dict(replacements)
        with _disable_current_modes(), torch.no_grad():
            base = inputs.get(BASE, self.base)
            (made, *_) = self.kernel.replay(self._kernel_inputs(inputs))
            return (self.window.put(base, made),)

    def pull(self, upstream: Upstream) -> dict[Path, Tensor]:
        (gradient,) = upstream
        if gradient is None:
            return {}
        part = self.window.part(gradient)
        kernel = self.kernel.with_inputs(self.kernel.inputs | self._kernel_inputs(self.inputs))
        pulled = kernel.pull([part])
        inside = pulled.get((0,), torch.zeros_like(part))
        onward = {BASE: self.window.put(gradient, inside)} if BASE in self.inputs else {}
        return onward | {p: pulled[q] for p, q in self.paths.items() if q in pulled}

    def _kernel_inputs(self, inputs: Mapping[Path, Tensor]) -> dict[Path, Tensor]:
        before = {(0,): self.window.part(inputs[BASE])} if BASE in inputs else {}
        return before | {q: inputs[p] for p, q in self.paths.items()}


class ViewAgain(Local):
    """The written whole to the part of it that the view shows."""

    source = "rule"

    def __init__(self, operation: Operation, dtype: torch.dtype) -> None:
        if BASE not in operation.inputs:
            raise TraceError(f"expected a view made again, got {operation.name} without its base.")
        self.window = Window.between(operation.inputs[BASE], operation.outputs[0])
        self.dtype, self.inputs = dtype, {BASE: operation.inputs[BASE].read().to(dtype)}
        self.outputs = self.replay({})

    def replay(self, replacements: Replacements) -> tuple[Tensor, ...]:
        with _disable_current_modes(), torch.no_grad():
            return (self.window.part((self.inputs | dict(replacements))[BASE]),)

    def pull(self, upstream: Upstream) -> dict[Path, Tensor]:
        (gradient,) = upstream
        if gradient is None:
            return {}
        nothing = torch.zeros(self.window.shape, dtype=gradient.dtype, device=gradient.device)
        return {BASE: self.window.put(nothing, gradient)}
