"""Tensors of which each process holds some rows (torch's DTensor, as `fully_shard` makes them), and whole ones.

Code that updates or saves weights works through these three functions and is the same for both: the part of a tensor
that is here, the whole of it, and the part of a whole tensor that belongs here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory: some of the rows, or the tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def whole(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which each process has a `part`, laid out as the weight `like` is. A collective operation."""
    if not is_sharded(like) or part.ndim == 0:
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    sharded = DTensor.from_local(part, mesh, placements, shape=like.shape, stride=like.stride(), run_check=False)
    return sharded.full_tensor()


@torch.no_grad()
def part_of(full: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of the weight `like`."""
    if not is_sharded(like) or full.ndim == 0:
        return full
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(full, mesh, placements, src_data_rank=None).to_local()
