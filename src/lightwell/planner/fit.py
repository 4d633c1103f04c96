"""Whether a step fits into memory: by an estimate, and where that comes near to what is free, by a step in another
process.

Nothing is raised on a CPU when memory runs out, so it must be known before. On a GPU something is: training then halves
its micro-batches (training/memory.py).
"""

from __future__ import annotations

import subprocess
import time

import torch

from lightwell.config.run import RunConfig, changed
from lightwell.errors import UserError
from lightwell.model.count import memory_bytes
from lightwell.model.kernels.build import library
from lightwell.planner.probe import STARTS, peak_of_a_step
from lightwell.runtime.device import Device
from lightwell.runtime.memory import free_bytes

MEMORY_SHARE = 0.6  # of what is free, for the estimate: that is 0.74 to 0.93 of what is measured (LOG.md)
PROBE_SHARE = 0.3  # of what is free: a larger estimate is checked by a step, where there is time


def free_memory(device: Device) -> int | None:
    """Bytes that may be taken: what machine and cgroup leave free, or the GPU; None where the system does not say."""
    if device.kind == "cuda":
        device.empty_cache()
        return int(torch.cuda.mem_get_info(device.torch_device)[0])
    return free_bytes()


def split_to_fit(config: RunConfig, free: int | None, device: Device, processes: int = 1) -> RunConfig | None:
    """The config with the largest micro-batch whose step stays within a share of the free memory; None if none does.

    A micro-batch of the user's stays. processes: that share each batch, and a CPU's memory as if all were on this
    machine.
    """
    mine = share_of(config, processes)
    each, fixed = mine.train.batch_size or 1, config.train.micro_batch_size
    if free is not None and device.kind == "cpu":
        free //= processes
    for rows in [fixed] if fixed else [n for n in range(each, 0, -1) if each % n == 0]:
        if free is None or step_memory(mine, rows, device)["total"] < MEMORY_SHARE * free:
            return config if rows in (each, fixed) else changed(config, train={"micro_batch_size": rows})
    return None


def share_of(config: RunConfig, processes: int) -> RunConfig:
    """The config of what one of so many processes does of each step."""
    rows, micro = max(1, (config.train.batch_size or 1) // processes), config.train.micro_batch_size
    return with_rows(config, rows, micro or rows)


def with_rows(config: RunConfig, rows: int, most: int) -> RunConfig:
    """With a batch of so many sequences, in equal parts of at most `most` at once."""
    at_once = next(n for n in range(min(rows, most), 0, -1) if rows % n == 0)
    return changed(config, train={"batch_size": rows, "micro_batch_size": at_once if at_once < rows else None})


def rows_at_once(config: RunConfig) -> int:
    """How many sequences of a batch go through the model together."""
    batch_size = config.train.batch_size or 1
    return min(batch_size, config.train.micro_batch_size or batch_size)


def step_memory(config: RunConfig, rows: int, device: Device) -> dict[str, int]:
    """What a step of a complete config with so many sequences at once takes at its peak, by kind, estimated in bytes
    (model/count.py)."""
    return memory_bytes(
        config.model.complete(),
        rows,
        dtype_bytes=device.dtype.itemsize,
        optimizer=config.optimizer.name,
        checkpoint_activations=config.runtime.checkpoint_activations,
        accumulate=rows < (config.train.batch_size or 1),
        device="cuda" if device.kind == "cuda" else "cpu",
        kernels=device.kind == "cpu" and library() is not None,
    )


def tried_in_memory(config: RunConfig, device: Device, step_seconds: float, limit: float) -> RunConfig:
    """The config with smaller micro-batches if a step, made in another process, needs too much memory or kills it.

    Tried twice at most, only on a CPU, and only within `limit` seconds; where that is too short, the estimate stays.
    """
    free, batch_size = free_memory(device), config.train.batch_size or 1
    for _ in range(2):
        rows = rows_at_once(config)
        long = STARTS + 2 * step_seconds * rows / batch_size
        little = free is None or step_memory(config, rows, device)["total"] < PROBE_SHARE * free
        if device.kind != "cpu" or free is None or little or rows == 1 or long > limit:
            break
        began = time.perf_counter()
        try:
            taken = peak_of_a_step(config, torch.get_num_threads(), timeout=min(3 * long, limit))
        except subprocess.TimeoutExpired:
            break
        if taken is not None and taken + saving_copy(config) < free:
            break
        half = next(n for n in range(rows // 2, 0, -1) if batch_size % n == 0)
        config = changed(config, train={"micro_batch_size": half})
        limit -= time.perf_counter() - began
    return config


def saving_copy(config: RunConfig) -> int:
    """Bytes of the copy of weights and moments that is written to disk while training goes on."""
    return memory_bytes(config.model.complete(), 1, optimizer=config.optimizer.name)["saving_copy"]


def require_memory(config: RunConfig, device: Device, processes: int = 1) -> None:
    """Raise UserError for a run that a CPU has no memory for: nothing would, and the system would end a process."""
    free, mine = free_memory(device), share_of(config, processes)
    needed = processes * step_memory(mine, rows_at_once(mine), device)["total"]
    if device.kind == "cpu" and free is not None and needed > free:
        raise UserError(
            f"expected a step that fits into {free / 1e9:.1f} GB of free memory, got one that needs about"
            f" {needed / 1e9:.1f} GB.",
            "Choose a smaller model, train.micro_batch_size=1, or --set runtime.checkpoint_activations=true.",
        )
