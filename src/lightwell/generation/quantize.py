"""Smaller weights for generation on a CPU: bfloat16, or whole numbers of 8 bits.

A step of generation takes as long as the weights take to arrive from memory, so weights of half or a quarter of the
size make it faster. The products of a model (its linear layers, head included) are replaced; embeddings and norms stay.

    bf16   weights rounded to bfloat16, 8 significant bits. Inputs and results are rounded likewise.
    int8   each row of a weight matrix, W[n], is whole numbers from -127 to 127 times one scale:

               W[n, k] = scale[n] * q[n, k],    scale[n] = max |W[n]| / 127

           Only the weights lose precision: an input x is written as two digits of 8 bits each, high + low / 254, in
           units of max |x| / 127, which is finer than what bfloat16 keeps. Both digits go through one exact product of
           whole numbers, side by side, so the weights still arrive once. Each row of x has a unit of its own.

`weight` of either module is the matrix that it stands for, in float32: `F.linear(x, module.weight, module.bias)` is the
twin. Sources: Jacob et al. 2018 (whole-number products); Dettmers et al. 2022 (why inputs need more than 8 bits).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightwell.errors import UserError
from lightwell.generation.mode import Model

LARGEST = 127  # of 8 bits with a sign, so that -x is there for every x
LOW = 2 * LARGEST  # the low digit counts in units of 1 / LOW of the high one's
SLOW = 10  # times as long as a product in float: what no processor's own instructions take
ZERO = 128  # what stands for 0 in 8 bits without a sign
TINY = 1e-30  # the unit of a row of zeros, which must not be 0


def quantize(model: Model, kind: str) -> Model:
    """A copy of `model` for generation, its products in "bf16" or "int8". What is not replaced is shared, not copied.

    Raises UserError for another kind, and for a model that is not on the CPU.
    """
    if kind not in KINDS:
        raise UserError(f"expected weights in {' or '.join(KINDS)}, got {kind!r}.", "Leave it out for float32.")
    if model.device.type != "cpu":
        raise UserError(
            f"expected a model on the CPU to quantize, got one on {model.device}.", "Use device cpu, or do without."
        )
    smaller = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()}).eval()
    for module in list(smaller.modules()):
        for name, part in module.named_children():
            plain = type(part).forward is nn.Linear.forward and "forward" not in vars(part)
            if isinstance(part, nn.Linear) and plain:
                setattr(module, name, KINDS[kind](part))
    return smaller


class BF16Linear(nn.Module):
    """A linear layer with weights in bfloat16. Input and result keep the dtype of the input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.rounded = linear.weight.detach().to(torch.bfloat16)  # (N, K)
        self.bias = None if linear.bias is None else linear.bias.detach()

    @property
    def weight(self) -> Tensor:
        return self.rounded.float()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16).reshape(-1, x.shape[-1])
        # One row as a matrix-vector product: the general product is slower at it.
        y = torch.mv(self.rounded, rows[0])[None] if len(rows) == 1 else F.linear(rows, self.rounded)
        y = y.to(x.dtype).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits and a scale per output. Input and result keep the dtype of the input.

    Where this machine's products of whole numbers are missing, inexact or slow, the same weights are kept in float
    beside: the same numbers, no faster than before.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # (N, K)
        self.scale = (weight.abs().amax(dim=1) / LARGEST).clamp(min=TINY)  # (N,)
        self.q = (weight / self.scale[:, None]).round().to(torch.int8)  # (N, K)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.onednn.qlinear_prepack(self.q, None) if whole_number_products() else None
        self.in_float = self.weight if self.packed is None else None
        self.zero_points = torch.zeros(len(weight), dtype=torch.int64)

    @property
    def weight(self) -> Tensor:
        return self.q * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            assert self.in_float is not None
            return F.linear(x, self.in_float.to(x.dtype), self.bias)
        rows = x.reshape(-1, x.shape[-1])  # (R, K)
        unit = (rows.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=TINY)  # (R, 1)
        high = (in_units := rows / unit).round()
        low = ((in_units - high) * LOW).round()
        y = _whole_number_product(torch.cat((high, low)), self.packed, self.scale, self.zero_points)
        y = torch.add(y[: len(rows)], y[len(rows) :], alpha=1 / LOW).to(x.dtype) * unit
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


KINDS = {"bf16": BF16Linear, "int8": Int8Linear}


def _whole_number_product(digits: Tensor, packed: Tensor, scale: Tensor, zero_points: Tensor) -> Tensor:
    """digits (M, K), whole numbers from -127 to 127 in float, times W^T, in float32: exact but for the scaling at the
    end.

    oneDNN's quantized product as torch.compile calls it, with an input scale of 1. Processors multiply numbers without
    a sign by ones with a sign; two with a sign are left to a loop 500 times as slow where there are no matrix units
    (LOG.md). It is not a public function of torch: `whole_number_products` tries it out before anything relies on it.
    """
    unsigned = (digits + ZERO).to(torch.uint8)
    return torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, ZERO, packed, scale, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )


@lru_cache(maxsize=1)
def whole_number_products() -> bool:
    """Whether they are there, exact and not SLOW. Some processors add them up in too few bits, so the largest are
    tried."""
    m, n, k = 32, 256, 256
    q = torch.full((n, k), LARGEST, dtype=torch.int8)
    q[::2] *= -1
    digits, weight = torch.full((m, k), float(LARGEST)), q.float()
    scale, zero_points = torch.ones(n), torch.zeros(n, dtype=torch.int64)
    try:
        packed = torch.ops.onednn.qlinear_prepack(q, None)
        result = _whole_number_product(digits, packed, scale, zero_points)
    except (AttributeError, RuntimeError):  # not in this build of torch, or not for this processor
        return False
    if not torch.equal(result, digits @ weight.T):
        return False
    theirs = _shortest(lambda: F.linear(digits, weight))
    return _shortest(lambda: _whole_number_product(digits, packed, scale, zero_points)) < SLOW * theirs


def _shortest(product: Callable[[], Tensor], times: int = 5) -> float:
    """Seconds that it takes at best."""

    def seconds() -> float:
        start = time.perf_counter()
        product()
        return time.perf_counter() - start

    return min(seconds() for _ in range(times))
