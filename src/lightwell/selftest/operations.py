"""Each operation of a training step on a device, forward and backward, against the same in float64 on the CPU.

An error is measured against the largest number of the exact result: max |got - exact| / max |exact|. What is allowed
follows from the precision: a float32 number has 24 bits, a bfloat16 one 8, and a sum of n products loses some of them.
Tolerances are about ten times what right devices show; a wrong kernel is off by far more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightwell.model.attention import attend
from lightwell.model.loss import cross_entropy_sum, plain_cross_entropy_sum
from lightwell.model.modern import rotate, rotation
from lightwell.runtime.device import Device
from lightwell.runtime.seeds import generator
from lightwell.training.muon import orthogonalise

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}
ROWS, WIDTH, VOCAB = 48, 64, 300  # of the matrices
B, H, G, T, D = 2, 4, 2, 40, 16  # of attention: batch, heads, heads of keys, time, head size


@dataclass(frozen=True)
class Row:
    """One line of the table. `error` and `gradient_error`: shares of the largest exact number; None: not measured."""

    name: str
    error: float
    gradient_error: float | None
    tolerance: float

    @property
    def good(self) -> bool:
        return self.error <= self.tolerance and (self.gradient_error or 0.0) <= self.tolerance  # False for a NaN


@dataclass(frozen=True)
class Operation:
    """A function of tensors, and the shapes of what goes in. `slack`: how much more error than usual is right."""

    name: str
    function: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    differentiable: bool = True
    slack: float = 1.0


def _targets(n: int) -> Tensor:
    targets = torch.randint(VOCAB, (n,), generator=generator(0, "selftest targets"))
    targets[::7] = -100
    return targets


def _loss(hidden: Tensor, weight: Tensor) -> Tensor:
    targets = _targets(hidden.shape[0]).to(hidden.device)
    if hidden.dtype == torch.float64:
        return plain_cross_entropy_sum(hidden, weight, targets)
    return cross_entropy_sum(hidden, weight, targets)[0]


def _lookup(weight: Tensor) -> Tensor:
    ids = torch.randint(ROWS, (B, T), generator=generator(0, "selftest ids")).to(weight.device)
    return F.embedding(ids, weight)


def _rope(x: Tensor) -> Tensor:
    return rotate(x, rotation(torch.arange(T, device=x.device)[None], D, 1e4, x.dtype))


OPERATIONS = (
    Operation("matrix product", F.linear, ((ROWS, WIDTH), (VOCAB, WIDTH))),
    Operation("embedding", _lookup, ((ROWS, WIDTH),)),
    Operation("attention", lambda q, k, v: attend(q, k, v, None, 0.0), ((B, H, T, D),) * 3),
    Operation(
        "attention, grouped", lambda q, k, v: attend(q, k, v, None, 0.0), ((B, H, T, D), (B, G, T, D), (B, G, T, D))
    ),
    Operation("layer norm", lambda x, g, b: F.layer_norm(x, (WIDTH,), g, b), ((ROWS, WIDTH), (WIDTH,), (WIDTH,))),
    Operation("RMS norm", lambda x, g: F.rms_norm(x, (WIDTH,), g, 1e-6), ((ROWS, WIDTH), (WIDTH,))),
    Operation("rotary positions", _rope, ((B, T, H, D),)),
    Operation("GELU (tanh)", lambda x: F.gelu(x, approximate="tanh"), ((ROWS, WIDTH),)),
    Operation("SiLU", F.silu, ((ROWS, WIDTH),)),
    Operation("last product and loss", _loss, ((ROWS, WIDTH), (VOCAB, WIDTH))),
    Operation("orthogonalisation (Muon)", orthogonalise, ((32, WIDTH),), False, slack=5.0),  # fifteen products
)


def check_operations(device: Device) -> list[Row]:
    """Every operation in the device's own precision."""
    return [check(operation, device) for operation in OPERATIONS]


def check(operation: Operation, device: Device) -> Row:
    """Run an operation on the device and in float64 on the CPU, from the very same numbers."""
    source = generator(0, "selftest", operation.name)
    inputs = [torch.randn(shape, generator=source).to(device.dtype) for shape in operation.shapes]
    exact, exact_gradients = _run(operation, [x.double() for x in inputs])
    got, gradients = _run(operation, [x.to(device.torch_device) for x in inputs])
    worst = max((relative_error(g, e) for g, e in zip(gradients, exact_gradients)), default=None)
    return Row(operation.name, relative_error(got, exact), worst, operation.slack * TOLERANCE[device.dtype])


def _run(operation: Operation, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    if not operation.differentiable:
        with torch.no_grad():
            return operation.function(*inputs), []
    inputs = [x.requires_grad_() for x in inputs]
    y = operation.function(*inputs)
    upstream = torch.randn(y.shape, generator=generator(0, "selftest upstream")).to(y)
    return y.detach(), list(torch.autograd.grad(y, inputs, upstream))


def relative_error(got: Tensor, exact: Tensor) -> float:
    """max |got - exact| / max |exact|; infinite where a number is missing (NaN)."""
    difference = (got.detach().cpu().double() - exact.detach().cpu().double()).abs().max().item()
    error = difference / max(exact.abs().max().item(), 1e-300)
    return error if error == error else float("inf")
