"""Index maps: which input elements one output element is computed from.

An index map takes a call and the index of an element of its first output, and gives for each floating point input an
int64 tensor of shape (n, rank of that input): the n elements that are read, one row each. "Read" means that the value
depends on them somewhere: relu reads its input even where its slope is 0, amax reads all that it compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightwell.glass.call import Call, Path
from lightwell.glass.shapes import wrapped

Index = tuple[int, ...]
IndexMap = Callable[[Call, Index], dict[Path, Tensor]]


def elementwise(call: Call, out: Index) -> dict[Path, Tensor]:
    """Each output element reads the element at its own place; along broadcast dimensions, the only one there is."""
    return {path: torch.tensor([aligned(x, out)], dtype=torch.int64) for path, x in call.float_inputs().items()}


def first_elementwise(call: Call, out: Index) -> dict[Path, Tensor]:
    """The same, of the first input alone."""
    return dict([next(iter(elementwise(call, out).items()))])


def everything(call: Call, out: Index) -> dict[Path, Tensor]:
    """Every output element reads every input element."""
    return {path: box(x) for path, x in call.float_inputs().items()}


def nothing(call: Call, out: Index) -> dict[Path, Tensor]:
    """No output element depends on any input element."""
    return {}


def along(default: Any = None, name: str = "dim") -> IndexMap:
    """Reductions and rows: a whole line along the option `dim` (None: along all dimensions), the same elsewhere.

    Holds for outputs that keep the reduced dimension, those that lost it, and those that keep it at full length.
    """

    def index_map(call: Call, out: Index) -> dict[Path, Tensor]:
        dims = call.named().get(name, default)
        found = {}
        for path, x in call.float_inputs().items():
            reduced = set(wrapped(dims, x.dim()))
            places = list(out) if len(out) == x.dim() else _reinserted(out, reduced, x.dim())
            found[path] = box(x, [None if d in reduced else places[d] for d in range(x.dim())])
        return found

    return index_map


def last_dims(name: str) -> IndexMap:
    """Normalisations: the first input's last dimensions whole, as many as option `name` has; others at their place."""

    def index_map(call: Call, out: Index) -> dict[Path, Tensor]:
        first, *others = call.float_inputs().items()
        kept = len(out) - len(call.named()[name])
        found = {first[0]: box(first[1], [*out[:kept], *[None] * (len(out) - kept)])}
        return found | {path: torch.tensor([out[kept:]], dtype=torch.int64) for path, _ in others}

    return index_map


def product(pattern: str) -> IndexMap:
    """Matrix products: "* ik kj -> ij" reads row i of the second argument and column j of the third.

    Arguments stand in the schema's order; "*" is broadcast to the output.
    """
    inputs, outputs = pattern.split("->")
    letters, result = inputs.split(), outputs.strip()

    def index_map(call: Call, out: Index) -> dict[Path, Tensor]:
        place = dict(zip(result, out))
        tensors = call.float_inputs().items()
        return {
            path: torch.tensor([aligned(x, out)], dtype=torch.int64)
            if word == "*"
            else box(x, [place.get(letter) for letter in word])
            for (path, x), word in zip(tensors, letters)
        }

    return index_map


def moved(call: Call, out: Index) -> dict[Path, Tensor]:
    """Operations that only move numbers: send the numbers of the places through the operation, and see which arrives.

    Twice with different numbers, so that a constant (the padding of a pad) is not taken for a place.
    """
    first, second = _arrivals(call, 0), _arrivals(call, 1)
    return _looked_up(call, {first[out].item()} if first[out] != second[out] else set())


def attended(call: Call, out: Index) -> dict[Path, Tensor]:
    """Attention: its own query, the keys of all places that it may look at, those places' values in its own column.

    Who sees one place only looks there whatever query and key say: these two are not read.
    """
    named = call.named()
    batch, head, time, column = out
    q, k, v = named["query"], named["key"], named["value"]
    group = head // (q.shape[1] // k.shape[1])
    name = "attn_mask" if "attn_mask" in named else "attn_bias"
    mask, seen = named.get(name), torch.ones(k.shape[2], dtype=torch.bool)
    if named["is_causal"]:
        seen[time + 1 :] = False
    if mask is not None:
        row = mask.expand(*mask.shape[:-2], q.shape[2], k.shape[2])[aligned(mask, (batch, head, time, 0))[:-1]]
        seen &= row if row.dtype == torch.bool else row > -math.inf
    places = seen.nonzero().flatten().tolist()
    found = {call.path("value"): as_indices([[batch, group, place, column] for place in places], v)}
    if len(places) > 1:
        found[call.path("query")] = box(q, [batch, head, time, None])
        found[call.path("key")] = torch.cat([box(k, [batch, group, place, None]) for place in places])
        if mask is not None and mask.is_floating_point():
            own = [aligned(mask, (batch, head, time, place)) for place in places]
            found[call.path(name)] = as_indices(own, mask).unique(dim=0)
    return found


def box(x: Tensor, places: Sequence[int | None] | None = None) -> Tensor:
    """All indices of `x` with the given places fixed (None: every place along that dimension): (n, rank)."""
    places = [None] * x.dim() if places is None else places
    ranges = [torch.arange(n) if place is None else torch.tensor([place]) for n, place in zip(x.shape, places)]
    if not ranges:
        return torch.zeros(1, 0, dtype=torch.int64)
    return torch.cartesian_prod(*ranges).reshape(-1, x.dim())


def as_indices(places: Sequence[Sequence[int]], x: Tensor) -> Tensor:
    """A list of indices into `x`, which may be empty, as a tensor (n, rank)."""
    return torch.tensor(places, dtype=torch.int64).reshape(len(places), x.dim())


def aligned(x: Tensor, out: Index) -> Index:
    """The index in `x` that broadcasting reads for the output index `out`."""
    own = out[len(out) - x.dim() :] if x.dim() else ()
    return tuple(0 if n == 1 else i for i, n in zip(own, x.shape))


def unravelled(flat: Iterable[int], x: Tensor) -> Tensor:
    """Places counted through `x` row by row, as indices: (n, rank)."""
    places = torch.tensor(list(flat), dtype=torch.int64)
    if not x.dim():
        return torch.zeros(len(places), 0, dtype=torch.int64)
    return torch.stack(torch.unravel_index(places, x.shape), dim=1)


def _reinserted(out: Index, reduced: set[int], rank: int) -> list[int]:
    places = iter(out)
    return [0 if d in reduced else next(places) for d in range(rank)]


def _arrivals(call: Call, turn: int) -> Tensor:
    """The first output after each input element was replaced by its number (all inputs counted through)."""
    total = sum(x.numel() for x in call.float_inputs().values())
    start, numbers = 1 + turn * total, {}
    for path, x in call.float_inputs().items():
        numbers[path] = torch.arange(start, start + x.numel(), dtype=torch.float64).reshape(x.shape)
        start += x.numel()
    return call.to(torch.float64).replay(numbers)[0]


def _looked_up(call: Call, numbers: set[float]) -> dict[Path, Tensor]:
    start, found = 1, {}
    for path, x in call.float_inputs().items():
        found[path] = unravelled([int(n) - start for n in numbers if start <= n < start + x.numel()], x)
        start += x.numel()
    return found
