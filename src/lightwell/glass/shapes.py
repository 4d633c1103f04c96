"""Shapes for rules: undoing what a reduction did to a shape, so that each input sees the gradient of its sum."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def wrapped(dims: Any, rank: int) -> list[int]:
    """The option `dim` as a list of non-negative numbers; None and [] stand for all dimensions."""
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(rank))
    return [d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])] if rank else []


def widened(reduced: Tensor, x: Tensor, dims: Any, keepdim: bool) -> Tensor:
    """What a reduction of `x` over `dims` gave, with the reduced dimensions back (size 1), so that it broadcasts to x."""
    if keepdim:
        return reduced
    for d in sorted(wrapped(dims, x.dim())):
        reduced = reduced.unsqueeze(d)
    return reduced


def count(x: Tensor, dims: Any) -> int:
    """How many elements of `x` a reduction over `dims` puts into one."""
    return math.prod(x.shape[d] for d in wrapped(dims, x.dim()))
