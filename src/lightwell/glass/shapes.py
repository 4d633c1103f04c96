"""Shapes for rules: undoing what a reduction did to a shape, so that each input sees the gradient of its sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor


def wrapped(dims: Any, rank: int) -> list[int]:
    """The option `dim` as a list of non-negative numbers; None and [] stand for all dimensions."""
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(rank))
    return [d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])] if rank else []


def widened(reduced: Tensor, x: Tensor, dims: Any, keepdim: bool) -> Tensor:
    """What a reduction of `x` over `dims` gave, with the reduced dimensions back at size 1: it broadcasts to x."""
    if keepdim:
        return reduced
    for d in sorted(wrapped(dims, x.dim())):
        reduced = reduced.unsqueeze(d)
    return reduced


def separable(dims: int, factor: Callable[[str, str, int], str]) -> str:
    """The formula of an operation that acts on each of `dims` dimensions by itself: a product of one factor for each.

    `factor` gets an index of the output, the one of the input, and which dimension it is.
    """
    outputs, inputs = "ijk"[:dims], "lmn"[:dims]
    product = " * ".join(factor(o, i, d) for d, (o, i) in enumerate(zip(outputs, inputs)))
    return f"dz[{','.join(outputs)}]/dx[{','.join(inputs)}] = {product}"


def count(x: Tensor, dims: Any) -> int:
    """How many elements of `x` a reduction over `dims` puts into one."""
    return math.prod(x.shape[d] for d in wrapped(dims, x.dim()))
