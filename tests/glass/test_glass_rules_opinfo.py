"""The rows against PyTorch on PyTorch's own samples: each kernel call that they lead to, replayed under autograd.

`torch.testing._internal` is not a public interface: it is used here and nowhere else.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from glass_rule_checks import Recorder, check_against_autograd

from lightwell.glass.call import Call
from lightwell.glass.rules import RULES, find

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

OPERATIONS = [op for op in op_db if op.supports_autograd and torch.float64 in op.supported_dtypes("cpu")]
# PyTorch computes with a constant in single precision, even in float64.
SINGLE_PRECISION = {"hardsigmoid": 1e-7, "celu": 1e-7}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recorded(op: object, most: int | None, in_place: bool) -> Iterator[Call]:
    """The kernel calls of an operation's samples (`most` of them): real, dense, with an input that has a derivative."""
    function = op.inplace_variant if in_place else op.op  # type: ignore[attr-defined]
    samples = op.sample_inputs_func(op, "cpu", torch.float64, requires_grad=not in_place)  # type: ignore[attr-defined]
    for sample in islice(samples, most):
        if in_place and sample.broadcasts_input:
            continue
        with Recorder() as seen:
            function(sample.input, *sample.args, **sample.kwargs)
        for call in seen.calls:
            tensors = [*call.tensor_inputs().values(), *call.outputs]
            plain = all(t.layout == torch.strided and not t.is_complex() for t in tensors)
            if plain and call.float_inputs() and find(call.op) is not None:
                yield call


def reads_beyond_its_argument(call: Call) -> bool:
    """as_strided of a view: its result depends on the memory around its argument, and the row refuses it."""
    if call.name != "as_strided":
        return False
    x, named = call.args[0], call.named()
    last = (named["storage_offset"] or 0) + sum(s * (n - 1) for s, n in zip(named["stride"], named["size"]))
    return not x.is_contiguous() or x.storage_offset() > 0 or last >= x.numel()


def sweep(most: int | None, in_place: bool = False) -> Counter[str]:
    """How many calls of each operation agreed. Raises AssertionError for the first that does not."""
    agreed: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in OPERATIONS:
            if in_place and op.inplace_variant is None:
                continue
            torch.manual_seed(0)
            for call in recorded(op, most, in_place):
                rule = find(call.op)
                assert rule is not None
                if reads_beyond_its_argument(call):
                    continue
                found = check_against_autograd(rule, call, tolerance=SINGLE_PRECISION.get(call.name, 1e-9))
                assert found == [], f"{op.name}: {call.op} {[getattr(a, 'shape', a) for a in call.args]}: {found}"
                agreed[call.name] += 1
    return agreed


def names_with_a_derivative() -> set[str]:
    return {name.split(".")[0] for name, rule in RULES.items() if rule.kind == "derivative"}


def test_first_samples_of_every_operation() -> None:
    agreed = sweep(most=2)
    assert agreed.total() > 1000
    assert len(names_with_a_derivative() & set(agreed)) > 180


@pytest.mark.slow
def test_all_samples_of_every_operation() -> None:
    agreed = sweep(most=None)
    assert agreed.total() > 30_000
    assert len(names_with_a_derivative() & set(agreed)) > 200


def test_all_samples_in_place() -> None:
    assert sweep(most=None, in_place=True).total() > 500
