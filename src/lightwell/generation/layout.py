"""Weights laid out for generation on a CPU: the same numbers, in the order and in the pages that arrive fastest.

With a cache, a step of generation reads every weight once and does little else. A matrix W (N, K) whose columns lie
side by side in memory is multiplied by one vector faster than one whose rows do, and the processor finds its way
through half a gigabyte faster if the system keeps it in pages of 2 MB instead of 4 kB. LOG.md has the figures.
"""

from __future__ import annotations

import mmap

import torch
from torch import nn

from lightwell.generation.mode import Model

ALIGNMENT = 64  # bytes: a cache line


def lay_out(model: Model) -> None:
    """Move the weights of the linear layers, in place: each is the same (N, K) matrix, column by column in huge pages.

    Tied weights stay tied. Nothing happens on other devices. Products may differ in the last bit: they are added up in
    another order.
    """
    if model.device.type != "cpu":
        return
    weights = {id(part.weight): part.weight for part in model.modules() if isinstance(part, nn.Linear)}
    sizes = [-(-weight.nbytes // ALIGNMENT) * ALIGNMENT for weight in weights.values()]
    if not sizes:
        return
    memory = mmap.mmap(-1, sum(sizes))
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    offset = 0
    for weight, size in zip(weights.values(), sizes):
        N, K = weight.shape
        columns = torch.frombuffer(memory, dtype=weight.dtype, count=N * K, offset=offset).view(K, N)
        weight.data = columns.copy_(weight.detach().t()).t()
        offset += size
