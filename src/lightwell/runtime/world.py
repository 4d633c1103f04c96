"""The processes of a run. Alone, a process is rank 0 of 1 and every operation gives back what it was given.

Code that asks `world` needs no `if distributed`: one path for one process and for many (torch.distributed, started by
torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes; `local_rank` counts within this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes: rank 0 alone does."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value: object) -> object:
        """Rank 0's value, on every process. Values must be JSON: nothing is pickled."""
        if self.size == 1:
            return value
        import json

        text = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, 0)
        data = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_main:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(data, 0)
        return json.loads(data.numpy().tobytes())

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any process."""
        return bool(self.sum(torch.tensor([int(flag)])).item()) if self.size > 1 else flag

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device_kind: str = "cpu", timeout_s: float = 600.0) -> Iterator[World]:
    """The World that torchrun made, or a process alone. Leaves the group at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device_kind == "cuda":
        torch.cuda.set_device(local_rank)
    # gloo beside nccl: flags and JSON travel as CPU tensors, gradients as CUDA ones
    backend = "cpu:gloo,cuda:nccl" if device_kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield World(dist.get_rank(), size, local_rank)
    finally:
        dist.destroy_process_group()
