"""The derivative of one captured operation, worked out again in float64 from its captured inputs.

`Local` is one operation ready for that. Its derivative comes from, in this order: our own rule (`rules`); for a custom
autograd function, the backward that its author wrote; otherwise PyTorch's autograd on the replayed operation. `source`
says which. Three directions: `pull` takes gradients of the outputs to gradients of the inputs, as backward does; `push`
takes a small change of the inputs to the change of the outputs; `differences` measures that change by running the
operation twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lightwell.errors import TraceError
from lightwell.glass.call import Call, Path, tensors_of
from lightwell.glass.recording import Operation
from lightwell.glass.rules import Rule, find
from lightwell.glass.values import Value

Source = Literal["rule", "own backward", "autograd"]


class Local:
    """One operation in float64. Raises TraceError if its inputs were not kept, or it cannot be run again.

    dtype: the precision to replay in; float64 unless the cost of rounding itself is to be measured.
    """

    def __init__(self, operation: Operation, dtype: torch.dtype = torch.float64) -> None:
        self.operation = operation
        self.dtype = dtype
        self.rule: Rule | None = None
        self.call: Call | None = None
        if operation.kind == "kernel":
            kernel = operation.kernel()
            self.rule = find(kernel.op)
            self.call = kernel.to(dtype)
            self.inputs = self.call.float_inputs()
            self.outputs = self.call.outputs
        elif operation.kind == "function":
            self.inputs = {p: _cast(v, dtype) for p, v in operation.inputs.items() if v.dtype.is_floating_point}
            self.outputs = self.replay({})
        else:
            raise TraceError(
                f"expected an operation that can be run again, got {operation.name}, a step of autograd's own",
                "Its gradients are shown as autograd gave them.",
            )
        self.source: Source = "rule" if self.rule else "own backward" if self.call is None else "autograd"

    @property
    def moves_numbers(self) -> bool:
        """Whether each output element is an input element or 0: views, and copies of them."""
        return self.rule is not None and self.rule.kind == "view"

    def replay(self, replacements: Mapping[Path, Tensor]) -> tuple[Tensor, ...]:
        """The outputs with other inputs at some paths, deterministic."""
        if self.call is not None:
            return self.call.replay(replacements)
        with _disable_current_modes(), torch.no_grad():
            return self._run_function(replacements)

    def pull(self, upstream: Sequence[Tensor | None]) -> dict[Path, Tensor]:
        """Gradients of the outputs (None: none) to gradients of the inputs."""
        if all(u is None for u in upstream):
            return {}
        if self.rule is not None and self.call is not None:
            return self.rule.backward(self.call, upstream)
        return self._by_autograd(upstream)

    def push(self, tangents: Mapping[Path, Tensor]) -> list[Tensor]:
        """A small change of the inputs to the change of each output, to first order.

        Backward is linear in the gradients it is given, J^T u; the slope of <J^T u, v> along u is J v.
        """
        with _disable_current_modes(), torch.enable_grad():
            probes = [torch.zeros_like(z, requires_grad=True) if _is_float(z) else None for z in self.outputs]
            pulled = self.pull(probes)
            paired = [(pulled[p] * v).sum() for p, v in tangents.items() if p in pulled and pulled[p].requires_grad]
            wanted = [p for p in probes if p is not None]
            if not paired:
                changes: tuple[Tensor | None, ...] = (None,) * len(wanted)
            else:
                changes = torch.autograd.grad(torch.stack(paired).sum(), wanted, allow_unused=True)
        found = iter(changes)
        return [_or_zero(None if p is None else next(found), z) for p, z in zip(probes, self.outputs)]

    def column(self, path: Path, index: tuple[int, ...]) -> list[Tensor]:
        """How fast each element of each output changes with one element of one input."""
        one = torch.zeros_like(self.inputs[path])
        one[index] = 1
        return self.push({path: one})

    def differences(self, tangents: Mapping[Path, Tensor], step: float) -> list[Tensor]:
        """The change of each output per unit along `tangents`, by running the operation on both sides."""
        sides = [self.replay({p: self.inputs[p] + s * step * v for p, v in tangents.items()}) for s in (1.0, -1.0)]
        return [(a - b) / (2 * step) if _is_float(a) else torch.zeros_like(a) for a, b in zip(*sides)]

    def shaken(self, eps: float, generator: torch.Generator) -> Local:
        """The same operation with inputs changed by a random part of one rounding (see `noise`)."""
        other = copy(self)
        other.inputs = {p: shake(x, eps, generator) for p, x in self.inputs.items()}
        if self.call is not None:
            other.call = self.call.with_inputs(other.inputs)
            other.call = replace(other.call, outputs=other.call.replay())
            other.outputs = other.call.outputs
        return other

    def _by_autograd(self, upstream: Sequence[Tensor | None]) -> dict[Path, Tensor]:
        with _disable_current_modes(), torch.enable_grad():
            leaves = {p: x.detach().requires_grad_() for p, x in self.inputs.items()}
            outputs = self._differentiable(leaves)
            pairs = [(z, u) for z, u in zip(outputs, upstream) if u is not None and z.requires_grad]
            if not pairs:
                return {}
            create_graph = any(u.requires_grad for _, u in pairs)
            gradients = torch.autograd.grad(
                [z for z, _ in pairs],
                list(leaves.values()),
                [u.to(z.dtype) for z, u in pairs],
                allow_unused=True,
                create_graph=create_graph,
            )
        return {p: g for p, g in zip(leaves, gradients) if g is not None}

    def _differentiable(self, leaves: Mapping[Path, Tensor]) -> tuple[Tensor, ...]:
        if self.call is None:
            return self._run_function(leaves)
        return self.call.with_inputs(leaves).rerun()

    def _run_function(self, replacements: Mapping[Path, Tensor]) -> tuple[Tensor, ...]:
        """A custom function, called again: its forward, and for gradients its own backward."""
        tensors = self.inputs | dict(replacements)
        args = [_filled((i,), a, tensors) for i, a in enumerate(self.operation.args)]
        kwargs = {name: _filled((name,), a, tensors) for name, a in self.operation.kwargs.items()}
        function: Callable[..., Any] = self.operation.function.apply
        try:
            return tensors_of(function(*args, **kwargs))
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise TraceError(
                f"expected {self.operation.name} to run again in {self.dtype}, got: {error}",
                "Its gradients are shown as autograd gave them.",
            ) from error


def run_again(operation: Operation, inputs: Mapping[Path, Tensor]) -> tuple[Tensor, ...]:
    """The outputs of an operation in float64 with these inputs, the others as captured."""
    if operation.kind != "kernel":
        return Local(operation).replay(inputs)
    kernel = operation.kernel()
    floats = {p: x for p, x in inputs.items() if kernel.get(p).is_floating_point()}
    return kernel.with_inputs(floats).to(torch.float64).outputs


def shake(tensor: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Each element changed by a random part of one rounding of relative size `eps`, up or down."""
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.device, tensor.dtype)
    return noise.mul_(2 * eps).add_(1 - eps).mul_(tensor)


def _filled(path: Path, argument: Any, tensors: Mapping[Path, Tensor]) -> Any:
    """An argument with tensors for its values; copies, since a function may write into them."""
    if isinstance(argument, Value):
        tensor = tensors.get(path)
        return argument.read() if tensor is None else tensor if tensor.requires_grad else tensor.clone()
    if isinstance(argument, list | tuple):
        return type(argument)(_filled((*path, i), item, tensors) for i, item in enumerate(argument))
    return argument


def _cast(value: Value, dtype: torch.dtype) -> Tensor:
    return value.read().to(dtype)


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _or_zero(change: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if change is None else change.detach()
