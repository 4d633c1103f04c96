"""The derivative of one captured operation, worked out again in float64 from its captured inputs.

`Local` is one operation ready for that. Its derivative comes from, in this order: our own rule (`rules`); for a custom
autograd function, the backward that its author wrote; otherwise PyTorch's autograd on the replayed operation. `source`
says which. Three directions: `pull` takes gradients of the outputs to gradients of the inputs, as backward does; `push`
takes a small change of the inputs to the change of the outputs; `replay` runs it again with other inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lightwell.errors import TraceError
from lightwell.glass.call import RECOMPUTE, Path, tensors_of
from lightwell.glass.recording import Operation
from lightwell.glass.rules import Rule, find
from lightwell.glass.values import Value

Source = Literal["rule", "own backward", "autograd"]
Replacements = Mapping[Path, Tensor]
Upstream = Sequence[Tensor | None]


class Local:
    """One operation, its floating point inputs cast to `dtype` and its outputs computed again from them.

    Raises TraceError if its inputs were not kept, or it cannot be run again.
    """

    source: Source
    dtype: torch.dtype
    rule: Rule | None = None
    inputs: dict[Path, Tensor]
    outputs: tuple[Tensor, ...]

    @staticmethod
    def of(operation: Operation, dtype: torch.dtype = torch.float64) -> Local:
        """The kind of Local that fits an operation."""
        from lightwell.glass.written_views import ViewAgain, WrittenView

        if any(v.dtype.is_complex for v in (*operation.inputs.values(), *operation.outputs)):
            raise _complex(operation)
        if operation.kind == "kernel":
            return LocalKernel(operation, dtype)
        if operation.kind == "function":
            return LocalFunction(operation, dtype)
        if operation.name == "CopySlices" and operation.owner is not None:
            return WrittenView(operation, dtype)
        if operation.name.startswith("AsStrided") and operation.outputs:
            return ViewAgain(operation, dtype)
        raise TraceError(
            f"expected an operation that can be run again, got {operation.name}, a step of autograd's own.",
            "Its gradients are shown as autograd gave them.",
        )

    @property
    def moves_numbers(self) -> bool:
        """Whether each output element is an input element or 0: views, and copies of them."""
        return self.rule is not None and self.rule.kind == "view"

    def replay(self, replacements: Replacements) -> tuple[Tensor, ...]:
        """The outputs with other inputs at some paths, deterministic."""
        raise NotImplementedError

    def pull(self, upstream: Upstream) -> dict[Path, Tensor]:
        """Gradients of the outputs (None: none) to gradients of the inputs."""
        raise NotImplementedError

    def with_inputs(self, inputs: dict[Path, Tensor]) -> Local:
        """The same operation with these inputs, and the outputs that follow from them."""
        other = copy(self)
        other.inputs = inputs
        other.outputs = self.replay(inputs)
        return other

    def push(self, tangents: Replacements) -> list[Tensor]:
        """A small change of the inputs to the change of each output, to first order.

        Backward is linear in the gradients it is given, J^T u; the slope of <J^T u, v> along u is J v.
        """
        with _disable_current_modes(), torch.enable_grad():
            probes = [torch.zeros_like(z, requires_grad=True) if z.is_floating_point() else None for z in self.outputs]
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

    def differences(self, tangents: Replacements, step: float) -> list[Tensor]:
        """The change of each output per unit along `tangents`, by running the operation on both sides."""
        sides = [self.replay({p: self.inputs[p] + s * step * v for p, v in tangents.items()}) for s in (1.0, -1.0)]
        return [(a - b) / (2 * step) if a.is_floating_point() else torch.zeros_like(a) for a, b in zip(*sides)]

    def shaken(self, eps: float, generator: torch.Generator) -> Local:
        """The same operation with inputs changed by a random part of one rounding (see `noise`)."""
        return self.with_inputs({p: shake(x, eps, generator) for p, x in self.inputs.items()})


class LocalKernel(Local):
    """A kernel: by our rule, or by autograd where there is none."""

    def __init__(self, operation: Operation, dtype: torch.dtype) -> None:
        kernel = operation.kernel()
        self.rule = find(kernel.op)
        self.source = "rule" if self.rule is not None else "autograd"
        self.dtype, self.call = dtype, kernel.to(dtype)
        self.inputs = self.call.float_inputs()
        self.outputs = self.call.outputs

    def replay(self, replacements: Replacements) -> tuple[Tensor, ...]:
        return self.call.replay(replacements)

    def with_inputs(self, inputs: dict[Path, Tensor]) -> Local:
        other = copy(self)
        other.call = self.call.with_inputs(inputs).to(next(iter(inputs.values())).dtype) if inputs else self.call
        other.inputs, other.outputs = inputs, other.call.outputs
        return other

    def pull(self, upstream: Upstream) -> dict[Path, Tensor]:
        if all(u is None for u in upstream):
            return {}
        if self.rule is not None:
            return self.rule.backward(self.call, upstream)
        return by_autograd(self.inputs, upstream, lambda leaves: self.call.with_inputs(leaves).rerun())


class LocalFunction(Local):
    """A custom autograd function: called again, and for gradients its own backward."""

    source = "own backward"

    def __init__(self, operation: Operation, dtype: torch.dtype) -> None:
        if any(callable(a) for a in (*operation.args, *operation.kwargs.values())):
            raise TraceError(
                f"expected a function of numbers, got {operation.name}, which is given code to run.",
                "To run that again could change what it works on. Its gradients are shown as autograd gave them.",
            )
        self.operation, self.dtype = operation, dtype
        self.inputs = {p: v.read().to(dtype) for p, v in operation.inputs.items() if v.dtype.is_floating_point}
        self.outputs = self.replay({})

    def replay(self, replacements: Replacements) -> tuple[Tensor, ...]:
        with _disable_current_modes(), torch.no_grad():
            return self._run(replacements)

    def pull(self, upstream: Upstream) -> dict[Path, Tensor]:
        return by_autograd(self.inputs, upstream, self._run)

    def push(self, tangents: Replacements) -> list[Tensor]:
        probes = [torch.ones_like(z, requires_grad=True) if z.is_floating_point() else None for z in self.outputs]
        why = "it is marked once_differentiable, or computes without autograd"
        try:
            pulled = self.pull(probes)
        except (RuntimeError, TypeError) as error:
            pulled, why = {p: torch.zeros(()) for p in tangents}, str(error)
        if any(p in pulled and not _connected(pulled[p], probes) for p in tangents):
            raise TraceError(
                f"expected the backward of {self.operation.name} to be differentiable, got one that is not: {why}.",
                "Explain the whole tensor: its gradient can be shown, not its single terms.",
            )
        return super().push(tangents)

    def _run(self, replacements: Replacements) -> tuple[Tensor, ...]:
        tensors = self.inputs | dict(replacements)
        args = [_filled((i,), a, tensors) for i, a in enumerate(self.operation.args)]
        kwargs = {name: _filled((name,), a, tensors) for name, a in self.operation.kwargs.items()}
        function: Callable[..., Any] = self.operation.function.apply
        try:
            with torch.random.fork_rng(devices={x.device for x in self.inputs.values() if x.is_cuda}):
                return tensors_of(function(*args, **kwargs))
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            dtype = next((str(x.dtype) for x in self.inputs.values()), "float64")
            raise TraceError(
                f"expected {self.operation.name} to run again in {dtype}, got: {error}.",
                "Its gradients are shown as autograd gave them.",
            ) from error


def _connected(gradient: Tensor, probes: list[Tensor | None]) -> bool:
    """Whether autograd knows how a gradient depends on what came from above, `probes`."""
    if not gradient.requires_grad:
        return False
    try:
        found = torch.autograd.grad(gradient.sum(), [p for p in probes if p is not None], allow_unused=True)
    except RuntimeError:
        return False
    return any(g is not None for g in found)


def by_autograd(
    inputs: Mapping[Path, Tensor], upstream: Upstream, run: Callable[[Replacements], tuple[Tensor, ...]]
) -> dict[Path, Tensor]:
    """Gradients by PyTorch's autograd: `run` gives outputs that are connected to the leaves it is given."""
    with _disable_current_modes(), torch.enable_grad():
        leaves = {p: x.detach().requires_grad_() for p, x in inputs.items()}
        pairs = [(z, u) for z, u in zip(run(leaves), upstream) if u is not None and z.requires_grad]
        if not pairs:
            return {}
        gradients = torch.autograd.grad(
            [z for z, _ in pairs],
            list(leaves.values()),
            [u.to(z.dtype) for z, u in pairs],
            allow_unused=True,
            create_graph=any(u.requires_grad for _, u in pairs),
        )
    return {p: g for p, g in zip(leaves, gradients) if g is not None}


def run_again(operation: Operation, inputs: Replacements) -> tuple[Tensor, ...]:
    """The outputs of an operation in float64 with these inputs, the others as captured."""
    if operation.kind != "kernel":
        return Local.of(operation).replay(inputs)
    kernel = operation.kernel()
    if any(x.is_complex() for x in (*kernel.tensor_inputs().values(), *kernel.outputs)):
        raise _complex(operation)
    floats = {p: x for p, x in inputs.items() if kernel.get(p).is_floating_point()}
    if kernel.name in RECOMPUTE:  # by the captured inputs as well: what was drawn follows from those
        return kernel.to(torch.float64).replay(floats)
    return kernel.with_inputs(floats).to(torch.float64).outputs


def _complex(operation: Operation) -> TraceError:
    return TraceError(
        f"expected real numbers, got complex ones in {operation.name}: their gradients are not explained."
    )


def shake(tensor: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Each element changed by a random part of one rounding of relative size `eps`, up or down."""
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.device, tensor.dtype)
    return noise.mul_(2 * eps).add_(1 - eps).mul_(tensor)


def _filled(path: Path, argument: Any, tensors: Replacements) -> Any:
    """An argument with tensors for its values; copies, since a function may write into them."""
    if isinstance(argument, Value):
        tensor = tensors.get(path)
        return argument.read() if tensor is None else tensor if tensor.requires_grad else tensor.clone()
    if isinstance(argument, list | tuple):
        return type(argument)(_filled((*path, i), item, tensors) for i, item in enumerate(argument))
    return argument


def _or_zero(change: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if change is None else change.detach()
