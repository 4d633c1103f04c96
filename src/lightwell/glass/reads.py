"""What each cell of a result is computed from, as a pattern that a page can follow without running anything.

A rule's index map answers for one output element at a time. Most operations answer alike everywhere: row i of one input
and column j of the other. `reads` asks for a few elements and finds the pattern that explains all answers. For each
dimension of an input it is

    a number     the same place as along that dimension of the output
    "*"          every place
    "<=2"        every place up to the output's along that dimension (causal attention)

or, for the whole input, ["flat"]: the element with the same number when both are counted row by row (a view). An
operation whose answers have no such pattern (a gather by index) has none, rather than a wrong one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightwell.glass.call import Path
from lightwell.glass.recording import Operation
from lightwell.glass.rules import find

Pattern = list[int | str]

LARGEST = 1 << 22  # elements of an input up to which it is asked


@dataclass(frozen=True)
class Read:
    """How an operation reads one of its inputs: its letter in the rule's formula, and the pattern, if there is one."""

    letter: str
    pattern: Pattern | None


def reads(operation: Operation) -> dict[Path, Read]:
    """By path of the input; empty for an operation without a rule or whose values were not kept."""
    rule = find(operation.op) if operation.op is not None else None
    kept = all(value.readable for value in (*operation.inputs.values(), *operation.outputs))
    if rule is None or not operation.outputs or not kept:
        return {}
    call = operation.kernel()
    inputs = call.float_inputs()
    found: dict[Path, Read] = {p: Read(letter, None) for letter, p in rule.paths(call).items() if p in inputs}
    if not inputs or not call.outputs[0].numel() or any(x.numel() > LARGEST for x in inputs.values()):
        return found
    shape = tuple(call.outputs[0].shape)
    probes = _probes(shape)
    answers = [rule.index_map(call, probe) for probe in probes]
    for path, x in inputs.items():
        given = [(probe, answer[path]) for probe, answer in zip(probes, answers, strict=True) if path in answer]
        letter = found[path].letter if path in found else ""
        found[path] = Read(letter, _pattern(tuple(x.shape), shape, given))
    return found


def all_reads(operations: Iterable[Operation]) -> dict[int, dict[Path, Read]]:
    """Operation id -> its reads. Operations that are alike (blocks repeat) are asked once."""
    known: dict[Any, dict[Path, Read]] = {}
    found = {}
    for operation in operations:
        by_value = not all(value.is_float for value in operation.inputs.values())  # an index decides what is read
        shapes = tuple((path, tuple(v.shape)) for path, v in operation.inputs.items())
        alike = (operation.op, shapes, repr(operation.attributes), operation.id if by_value else -1)
        if alike not in known:
            known[alike] = reads(operation)
        if known[alike]:
            found[operation.id] = known[alike]
    return found


def _probes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """A few output elements that tell the dimensions apart: corners, and one inside with unequal places."""
    inside = tuple((k + 1) % n if n > 1 else 0 for k, n in enumerate(shape))
    last = tuple(n - 1 for n in shape)
    corners = list(itertools.islice(itertools.product(*[sorted({0, n - 1}) for n in shape]), 4))
    return list(dict.fromkeys([inside, last, *corners]))


def _pattern(
    shape: tuple[int, ...], out_shape: tuple[int, ...], given: list[tuple[tuple[int, ...], Tensor]]
) -> Pattern | None:
    """The pattern of one input of that shape which gives each probe its answer, an (n, rank) tensor of indices."""
    if len(given) < min(2, max(1, len(out_shape))):
        return None
    probes = [probe for probe, _ in given]
    pattern: Pattern = []
    for d, size in enumerate(shape):
        seen = [sorted(set(answer[:, d].tolist())) for _, answer in given]
        rank = len(out_shape)
        candidates: list[int | str] = [e for e in range(rank) if seen == [[p[e]] for p in probes]]
        if seen == [list(range(size))] * len(probes):
            candidates.append("*")
        candidates += [f"<={e}" for e in range(rank) if seen == [list(range(min(p[e] + 1, size))) for p in probes]]
        if not candidates:
            return _flat(shape, out_shape, given)
        pattern.append(d if d in candidates else candidates[0])  # of several the plainest: its own dimension
    for probe, answer in given:
        expected = 1
        for part, size in zip(pattern, shape, strict=True):
            expected *= _count(part, probe, size)
        if expected != len(answer):
            return None  # the places are no box
    return pattern


def _flat(
    shape: tuple[int, ...], out_shape: tuple[int, ...], given: list[tuple[tuple[int, ...], Tensor]]
) -> Pattern | None:
    alike = all(
        len(answer) == 1 and _number(answer[0].tolist(), shape) == _number(probe, out_shape) for probe, answer in given
    )
    return ["flat"] if alike else None


def _number(index: Iterable[int], shape: tuple[int, ...]) -> int:
    """The place of an element counted row by row."""
    number = 0
    for place, size in zip(index, shape, strict=True):
        number = number * size + place
    return number


def _count(part: int | str, probe: tuple[int, ...], size: int) -> int:
    if part == "*":
        return size
    return min(probe[int(part[2:])] + 1, size) if isinstance(part, str) else 1
