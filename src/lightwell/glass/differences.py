"""The slope of one operation along a direction, measured by running it twice.

(f(x + h v) - f(x - h v)) / 2 h, in float64; once with h and once with 2 h, since what the two differ by is what the
measurement is worth. At a kink (ReLU at 0, the maximum of equal numbers) there is no slope: the function bends on the
spot, f(x + h v) - 2 f(x) + f(x - h v) is as large as the slope itself. Output elements that bend are left out on both
sides of the comparison, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightwell.glass.call import Path
from lightwell.glass.local import Local
from lightwell.glass.noise import SAFETY, all_finite

STEP = 1e-5  # relative to each element's own size
BEND = 0.01  # of the slope: a smooth function bends by about STEP
_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Slope:
    """How far the measured slope is from the gradient's: `error` and its `noise`, relative to the slope's size.

    usable: whether the measurement settled. kinks: how many output elements were left out.
    """

    error: float
    noise: float
    usable: bool
    kinks: int


def direction(x: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction that leans towards the gradient, each element about as long as its own element of `x`.

    Along the gradient a wrong factor shows at its full size, across it a wrong element does.
    """
    if not all_finite(x, gradient):
        finite = x.isfinite() & gradient.isfinite()
        return direction(torch.where(finite, x, 0.0), torch.where(finite, gradient, 0.0), generator).mul_(finite)
    along = torch.rand(x.shape, generator=generator, dtype=torch.float32).to(x.device, x.dtype).mul_(2).sub_(1)
    along += (gradient / max(_rms(gradient), torch.finfo(x.dtype).tiny)).clamp_(-10, 10)
    return along.mul_(x.abs().add_(1e-3 * (_rms(x) or 1.0)))


def slope_along(
    local: Local,
    path: Path,
    along: Tensor,
    captured: Tensor,
    upstream: Sequence[Tensor | None],
    floor: Tensor | None,
    eps: float = 0.0,
) -> Slope:
    """Compare the captured gradient of one input with the measured slope along `along`.

    upstream: the gradients of the outputs. floor: the noise of the captured gradient, element by element; added up over
    many elements it nearly cancels, but not what their roundings have in common: at least `eps` of the sum stays.
    """
    if local.moves_numbers and floor is None:  # not a cast, which rounds
        return _slope_of_view(local, path, along, captured, upstream)
    x = local.inputs[path]
    ends = {size: local.replay({path: x + size * STEP * along}) for size in (-2.0, -1.0, 1.0, 2.0)}
    bent = [_bends(z, ends[-1.0][i], ends[1.0][i]) for i, z in enumerate(local.outputs)]
    kinks = sum(int(b.sum()) for b, u in zip(bent, upstream) if u is not None)
    used = [None if u is None else torch.where(b, 0.0, u) for u, b in zip(upstream, bent)] if kinks else list(upstream)
    near, far, rounding = 0.0, 0.0, 0.0
    for i, u in enumerate(used):
        if u is not None:
            near += float((u * _rise(ends[-1.0][i], ends[1.0][i])).sum()) / (2 * STEP)
            far += float((u * _rise(ends[-2.0][i], ends[2.0][i])).sum()) / (4 * STEP)
            sizes = u * local.outputs[i]
            if not all_finite(sizes):
                sizes = torch.where(sizes.isfinite(), sizes, 0.0)
            rounding += 4 * _EPS * float(torch.linalg.vector_norm(sizes)) / STEP
    gradient = captured
    if kinks:
        gradient = local.pull(used).get(path, torch.zeros_like(x))
    predicted = float((gradient * along).sum())
    size = max(abs(near), abs(predicted))
    noise = abs(near - far) + rounding + (0.0 if floor is None else float((floor * along).norm()) + eps * size)
    gap = abs(near - predicted)
    left = sum(u.numel() for u in used if u is not None) - kinks
    usable = math.isfinite(near) and left > 0 and abs(near - far) <= 0.001 * size + SAFETY * rounding
    if not math.isfinite(size + noise):
        return Slope(0.0, 0.0, False, kinks)
    if size <= SAFETY * noise and gap <= SAFETY * noise:  # a slope of nothing
        return Slope(0.0, 0.0, left > 0, kinks)
    return Slope(gap / size, noise / size, usable, kinks)


def _slope_of_view(
    local: Local, path: Path, along: Tensor, captured: Tensor, upstream: Sequence[Tensor | None]
) -> Slope:
    """An operation that only moves numbers moves their changes alike: one run with the changes alone is enough."""
    moved = local.replay({path: along})
    near = sum(float((u.double() * z).sum()) for u, z in zip(upstream, moved) if u is not None)
    predicted = float((captured.double() * along).sum())
    size = max(abs(near), abs(predicted))
    noise = torch.finfo(along.dtype).eps * float((captured * along).norm())
    return Slope(abs(near - predicted) / size if size else 0.0, noise / size if size else 0.0, math.isfinite(near), 0)


def _rise(below: Tensor, above: Tensor) -> Tensor:
    """above - below, and 0 where both are the same infinity: the masked places of attention."""
    return torch.where(below == above, 0.0, above - below)


def _bends(middle: Tensor, below: Tensor, above: Tensor) -> Tensor:
    if not middle.is_floating_point():
        return torch.zeros_like(middle, dtype=torch.bool)
    bend, rise = (above - 2 * middle + below).abs(), _rise(below, above).abs()
    bent = bend > rise.mul(BEND).add_(middle.abs(), alpha=64 * _EPS)
    if not all_finite(bend, rise):
        bent |= ~(bend.isfinite() & rise.isfinite()) & middle.isfinite()
    return bent


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / math.sqrt(x.numel()) if x.numel() else 0.0
