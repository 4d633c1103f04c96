"""The environment that a run's bits depend on: recorded with each checkpoint, compared when a run goes on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from lightwell.runtime.device import Device
from lightwell.runtime.world import World


def environment(device: Device, world: World) -> dict[str, str | int]:
    """What must be equal for a resumed run to be bit for bit the undisturbed one."""
    return {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processor": processor(),  # libraries take other paths on other makers' processors of equal capability
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "device": device.describe(),
        "processes": world.size,
    }


def processor() -> str:
    """The processor's name, as the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def differences(before: dict[str, str | int], now: dict[str, str | int]) -> list[str]:
    """Each difference as "key: before -> now"."""
    keys = sorted(before.keys() | now.keys())
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
