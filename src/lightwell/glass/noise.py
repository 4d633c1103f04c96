"""How much rounding alone may change a gradient, measured rather than guessed.

Every number that an operation read, and every gradient that came to it, was rounded to its precision. The noise floor
is what happens to the result when each of them is changed by a random part of one such rounding and everything is
worked out again in float64. Cancellation (a softmax that is nearly sure, a norm of a large mean) shows up by itself.
Source of the idea: Vignes 1993, "A stochastic arithmetic for reliable scientific computation".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightwell.glass.call import Path
from lightwell.glass.local import Local, shake
from lightwell.glass.recording import Operation

SAMPLES = 2  # tries; a large tensor has its many elements for tries
LARGE = 1 << 18
SAFETY = 32  # a difference counts as real above this many noise floors: kernels round more than once


def all_finite(*tensors: Tensor) -> bool:
    """Whether there is no NaN or infinity: their sum would not be finite either, which is quicker to see."""
    return all((not x.is_complex() and math.isfinite(float(x.sum()))) or bool(x.isfinite().all()) for x in tensors)


def precision(dtypes: Sequence[torch.dtype]) -> float:
    """The relative spacing of the coarsest of these floating point types."""
    return max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=torch.finfo(torch.float64).eps)


def gives_what_it_gave(operation: Operation, local: Local) -> bool:
    """Whether the outputs of `local`, with the captured inputs, are about the captured outputs."""
    magnitudes = [x.abs().max() for x in local.inputs.values() if x.numel()]
    of_inputs = float(max(magnitudes, default=torch.zeros(())))  # what is left of a difference has its rounding
    for value, again in zip(operation.outputs, local.outputs):
        if not (value.is_float and value.readable and value.numel):
            continue
        before = value.read().double()
        finite = before.isfinite() & again.isfinite()
        eps = precision([value.dtype])
        gap = torch.where(finite, before - again, 0.0).abs().max()
        size = torch.where(finite, before, 0.0).abs().max()
        if gap > max(0.01, SAFETY * eps) * size + SAFETY * eps * of_inputs:
            return False
    return True


def noise_floor(
    local: Local, upstream: Sequence[Tensor | None], exact: dict[Path, Tensor], eps: float, seed: int
) -> dict[Path, Tensor]:
    """For each input, the size of the noise in each element of its gradient. `exact` is the gradient without noise."""
    generator = torch.Generator().manual_seed(seed)
    floors = {path: eps * gradient.abs() for path, gradient in exact.items()}
    for _ in range(1 if any(g.numel() > LARGE for g in exact.values()) else SAMPLES):
        shaken = local.shaken(eps, generator)
        gradients = shaken.pull([None if u is None else shake(u, eps, generator) for u in upstream])
        for path, gradient in gradients.items():
            if path in floors:
                torch.maximum(floors[path], (gradient - exact[path]).abs_(), out=floors[path])
    most = max((_product(local.inputs[path], gradient) for path, gradient in exact.items()), default=0.0)
    for path, gradient in exact.items():
        if not gradient.any():  # terms that cancel exactly here, shaken alike, and not in a kernel: one key's softmax
            floors[path].fill_(eps * most / (_size(local.inputs[path]) or 1.0))
    return floors


def _product(x: Tensor, gradient: Tensor) -> float:
    """How much of the loss hangs on an input, in the loss's own unit: so that inputs can be compared."""
    return _size(x) * _size(gradient)


def _size(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.nan_to_num()))
