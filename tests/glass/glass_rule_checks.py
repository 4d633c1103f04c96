"""What it means that a row of the table is right: five checks, each giving a list of complaints (empty: right).

Shared by the tests of the rules; the tests of these checks themselves hand them mutated rows, which they must reject.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from lightwell.glass import formula as formulas
from lightwell.glass.call import Call, Path, tensors_of, written_arguments
from lightwell.glass.rule import Rule
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Keeps every kernel call, with what it overwrites kept as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        before = Call(op, tuple(args), kwargs or {}, ())
        writes = bool(written_arguments(op))
        kept = before.with_inputs(
            {path: t.detach().clone() if writes else t.detach() for path, t in before.tensor_inputs().items()}
        )
        result = op(*args, **(kwargs or {}))
        outputs = tuple(t.detach().clone() for t in tensors_of(result))
        self.calls.append(Call(op, kept.args, kept.kwargs, outputs))
        return result


def upstream_for(call: Call, generator: torch.Generator) -> list[Tensor | None]:
    """A random gradient for each output that can have one."""
    return [
        torch.randn(z.shape, generator=generator, dtype=z.dtype) if z.is_floating_point() else None
        for z in call.outputs
    ]


def by_autograd(
    call: Call, upstream: list[Tensor | None]
) -> tuple[Call, list[Tensor | None], dict[Path, Tensor]] | None:
    """The call as PyTorch ran it again, the upstream gradients that it took, and its gradients; None if it has none."""
    leaves = {path: x.detach().clone().requires_grad_() for path, x in call.float_inputs().items()}
    while True:
        try:
            with torch.enable_grad():
                alive = call.with_inputs({path: x.clone() for path, x in leaves.items()})
                outputs = tensors_of(alive.op(*alive.args, **alive.kwargs))
            break
        except RuntimeError as error:  # PyTorch names the argument that it does not differentiate by
            refused = re.search(r"not differentiable with respect to argument '(\w+)'", str(error))
            if refused is None:
                raise
            del leaves[call.path(refused[1])]
    taken = [dz if z.requires_grad else None for z, dz in zip(outputs, upstream)]
    pairs = [(z, dz) for z, dz in zip(outputs, taken) if dz is not None]
    if not pairs:
        return None
    zs, dzs = zip(*pairs)
    gradients = torch.autograd.grad(zs, list(leaves.values()), dzs, allow_unused=True)
    again = replace(call, outputs=tuple(z.detach() for z in outputs))
    return again, taken, {p: torch.zeros_like(x) if g is None else g for (p, x), g in zip(leaves.items(), gradients)}


def complaints(got: dict[Path, Tensor], wanted: dict[Path, Tensor], tolerance: float) -> list[str]:
    """Where two sets of gradients differ. A missing one counts as 0."""
    found = []
    for path, want in wanted.items():
        have = got.get(path, torch.zeros_like(want))
        if have.shape != want.shape:
            found.append(f"{path}: shape {tuple(have.shape)} instead of {tuple(want.shape)}")
        elif not torch.allclose(have, want, rtol=tolerance, atol=tolerance, equal_nan=True):
            found.append(f"{path}: off by {(have - want).abs().max().item():.3g}\n{have}\n{want}")
    return found


def check_against_autograd(rule: Rule, call: Call, seed: int = 0, tolerance: float = 1e-9) -> list[str]:
    """The row's gradients are PyTorch's."""
    twin = by_autograd(call, upstream_for(call, torch.Generator().manual_seed(seed)))
    if twin is None:
        return []
    again, upstream, wanted = twin
    return complaints(rule.backward(again, upstream), wanted, tolerance)
