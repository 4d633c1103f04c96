"""One kernel call, kept so that it can be run again: the atom of the glass box.

PyTorch turns everything that a model does into calls of a few hundred kernels ("aten operations"): `a + b` arrives as
`aten.add.Tensor`, `F.layer_norm` as `aten.native_layer_norm.default`. A `Call` is one of them as a TorchDispatchMode
sees it below autograd: the operation, its arguments, its results. For an in-place operation (`add_`) the written
argument is the value *before* the write, the output the value after it.

A *path* says where among the arguments a tensor sits: (0,) is the first positional argument, (0, 2) the third tensor of
a list that is the first argument, ("weight",) the keyword argument `weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes

from lightwell.errors import TraceError

Path = tuple[int | str, ...]

# Operations that a plain rerun would not repeat: base name -> (call with new inputs, call as captured) -> its outputs.
# Rules register here (dropout by its captured mask, fused attention in its parts).
RECOMPUTE: dict[str, Callable[[Call, Call], tuple[Tensor, ...]]] = {}


@cache
def base_name(op: OpOverload) -> str:
    """The operation without overload and without the underscore of its in-place twin: aten.add_.Tensor -> "add"."""
    name = op._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


@cache
def _argument_names(op: OpOverload) -> tuple[str, ...]:
    return tuple(argument.name for argument in op._schema.arguments)


@cache
def written_arguments(op: OpOverload) -> frozenset[str]:
    """Names of the arguments that the operation writes into, as its schema says."""
    arguments = op._schema.arguments
    return frozenset(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)


@cache
def is_random(op: OpOverload) -> bool:
    """Whether a rerun may draw other numbers, or find other leftovers in fresh memory."""
    return torch.Tag.nondeterministic_seeded in op.tags or base_name(op).startswith(("empty", "new_empty"))


def tensors_of(result: Any) -> tuple[Tensor, ...]:
    """The tensors in an operation's result, in order; numbers and None are left out."""
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, list | tuple):
        return tuple(tensor for item in result for tensor in tensors_of(item))
    return ()


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one kernel: `args` and `kwargs` as the dispatcher passes them, `outputs` the tensors it gave back."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]

    @classmethod
    def run(cls, op: OpOverload, *args: Any, **kwargs: Any) -> Call:
        """Run `op` now, and keep it as a call."""
        return replace(cls(op, args, kwargs, ()), outputs=cls(op, args, kwargs, ()).rerun())

    @property
    def name(self) -> str:
        """The base name, under which the rule is found."""
        return base_name(self.op)

    def named(self) -> dict[str, Any]:
        """Every argument by the name that the schema gives it, defaults filled in."""
        values = {argument.name: argument.default_value for argument in self.op._schema.arguments}
        return values | dict(zip(_argument_names(self.op), self.args)) | dict(self.kwargs)

    def path(self, name: str) -> Path:
        """Where the argument called `name` sits."""
        position = _argument_names(self.op).index(name)
        return (position,) if position < len(self.args) else (name,)

    def tensor_inputs(self) -> dict[Path, Tensor]:
        """Every tensor among the arguments, in order, by its path."""
        found: dict[Path, Tensor] = {}
        for key, value in self._arguments():
            if isinstance(value, Tensor):
                found[(key,)] = value
            elif isinstance(value, list | tuple):
                found |= {(key, i): item for i, item in enumerate(value) if isinstance(item, Tensor)}
        return found

    def float_inputs(self) -> dict[Path, Tensor]:
        """The tensor inputs that can have a gradient: floating point, and not a buffer named `out`."""
        return {p: t for p, t in self.tensor_inputs().items() if t.is_floating_point() and p[0] != "out"}

    def get(self, path: Path) -> Any:
        """The argument at a path, the default if the call gives none."""
        value = self.args[path[0]] if isinstance(path[0], int) else self.named()[path[0]]
        return value if len(path) == 1 else value[path[1]]

    def with_inputs(self, replacements: Mapping[Path, Any]) -> Call:
        """The same call with other values at these paths; its outputs are still the captured ones."""
        if not replacements:
            return self
        new = {key: self._replaced(key, value, replacements) for key, value in self._arguments()}
        args = tuple(new[i] for i in range(len(self.args)))
        return replace(self, args=args, kwargs={name: new[name] for name in self.kwargs})

    def replay(self, replacements: Mapping[Path, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Run the operation again, with other tensors at some paths, and give its outputs.

        Deterministic: dropout uses its captured mask again, a random generator gives the captured numbers. Neither
        autograd nor a mode that records sees anything of it, and no captured tensor is written to.
        """
        call = self.with_inputs(replacements or {})
        with _disable_current_modes(), torch.no_grad():
            if call.name in RECOMPUTE:
                return RECOMPUTE[call.name](call, self)
            if is_random(call.op) and self.named().get("dropout_p") != 0:
                return call.outputs
            return call.rerun()

    def to(self, dtype: torch.dtype) -> Call:
        """The call with every floating point input, and the outputs computed again from them, in `dtype`."""
        cast = self.with_inputs({path: t.detach().to(dtype) for path, t in self.float_inputs().items()})
        args = tuple(_cast_option(value, dtype) for value in cast.args)
        kwargs = {name: _cast_option(value, dtype) for name, value in cast.kwargs.items()}
        outputs = tuple(t.to(dtype) if t.is_floating_point() else t for t in self.outputs)
        cast = Call(self.op, args, kwargs, outputs)
        return replace(cast, outputs=cast.replay())

    def _arguments(self) -> Iterator[tuple[int | str, Any]]:
        yield from enumerate(self.args)
        yield from self.kwargs.items()

    @staticmethod
    def _replaced(key: int | str, value: Any, replacements: Mapping[Path, Any]) -> Any:
        if (key,) in replacements:
            return replacements[(key,)]
        if isinstance(value, list | tuple):
            return type(value)(replacements.get((key, i), item) for i, item in enumerate(value))
        return value

    def rerun(self) -> tuple[Tensor, ...]:
        """Hand the arguments to the operation as they are, except those that it writes to, of which it gets copies.

        Raises TraceError where the operation refuses them.
        """
        fresh = {self.path(name): self.named()[name] for name in written_arguments(self.op)}
        call = self.with_inputs({path: t.clone() for path, t in fresh.items() if isinstance(t, Tensor)})
        try:
            return tensors_of(call.op(*call.args, **call.kwargs))
        except (RuntimeError, NotImplementedError) as error:
            raise TraceError(
                f"expected {self.op} to run again with its captured inputs, got: {error}.",
                "The operation is shown with its captured values only.",
            ) from error


def _cast_option(value: Any, dtype: torch.dtype) -> Any:
    """An option such as `dtype=torch.float32` follows the cast; everything else stays."""
    return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value
