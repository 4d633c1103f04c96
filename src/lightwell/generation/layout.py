"""Weights laid out for generation on a CPU: the same numbers, in the order and in the pages that arrive fastest.

With a cache, a step of generation reads every weight once and does little else. The processor finds its way through
half a gigabyte faster if the system keeps it in pages of 2 MB instead of 4 kB. Our step in C reads a matrix W (N, K)
row by row; PyTorch, where it must do, multiplies by one vector faster if its columns lie side by side (LOG.md).
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor, nn

from lightwell.generation.mode import Model
from lightwell.generation.quantize import BF16Linear, Int8Linear
from lightwell.model.kernels.build import library

ALIGNMENT = 64  # bytes: a cache line


def lay_out(model: Model) -> None:
    """Move the weights of the linear layers, in place: each is the same (N, K) matrix, in huge pages.

    Tied weights stay tied. Nothing happens on other devices. Products may differ in the last bit: they are added up in
    another order.
    """
    if model.device.type != "cpu":
        return
    weights = {id(weight): weight for part in model.modules() if (weight := _read_by_steps(part)) is not None}
    sizes = [-(-weight.nbytes // ALIGNMENT) * ALIGNMENT for weight in weights.values()]
    if not sizes:
        return
    memory = _anonymous(sum(sizes))
    offset = 0
    for weight, size in zip(weights.values(), sizes):
        N, K = weight.shape
        numbers = torch.frombuffer(memory, dtype=weight.dtype, count=N * K, offset=offset)
        by_columns = library() is None and isinstance(weight, nn.Parameter)
        moved = numbers.view(K, N).t() if by_columns else numbers.view(N, K)
        weight.data = moved.copy_(weight.detach())
        offset += size


def _anonymous(size: int) -> mmap.mmap:
    """Memory of this process alone, in huge pages where the system has them. Shared memory, which Python's default
    would be, mostly gets none."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # only Linux has it
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _read_by_steps(part: nn.Module) -> Tensor | None:
    """The matrix that a step multiplies by, if the part has one."""
    if isinstance(part, BF16Linear):
        return part.rounded
    return part.q if isinstance(part, Int8Linear) else part.weight if isinstance(part, nn.Linear) else None
