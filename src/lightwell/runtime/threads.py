"""How many threads to compute with: what the scheduler and the container allow, not what the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lightwell.config.run import RunConfig
from lightwell.runtime.world import World


@contextmanager
def one_thread() -> Iterator[None]:
    """In the `with` block PyTorch computes with one thread: sums do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_threads(config: RunConfig, world: World | None = None) -> None:
    """Use the processors that there are, shared among the processes of this machine, or as many as OMP_NUM_THREADS
    says, which torchrun sets to 1 unasked."""
    sharing, said = world.local_size if world else 1, os.environ.get("OMP_NUM_THREADS", "")
    asked = int(said) if said.isdecimal() and "TORCHELASTIC_RUN_ID" not in os.environ else 0
    torch.set_num_threads(config.runtime.threads or asked or max(1, allowed_cpus() // sharing))


def limit_threads() -> None:
    """Use no more threads than there are processors for: PyTorch does not know of a container's quota."""
    torch.set_num_threads(min(torch.get_num_threads(), allowed_cpus()))


def allowed_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: the scheduler's affinity, cut to the cgroup's quota (versions 2 and 1)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def _quota(cgroup: Path) -> float | None:
    """CPUs' worth of time that the cgroup grants, or None when it sets no limit."""
    version_2 = cgroup / "cpu.max"
    quota_1, period_1 = cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"
    if version_2.is_file():
        quota, period = version_2.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    if quota_1.is_file() and period_1.is_file():
        quota = quota_1.read_text().strip()
        return None if int(quota) <= 0 else int(quota) / int(period_1.read_text())
    return None
