"""The matrix-product peak of a device, measured: what a training step is compared with."""

from __future__ import annotations

import time

import torch

from lightwell.runtime.device import Device


def measure_peak_flops(device: Device, size: int = 2048, seconds: float = 0.3) -> float:
    """FLOP per second of square products of `size` in the device's dtype: the best of several, after a warm-up."""
    if device.kind == "cuda":
        size = max(size, 8192)
    a = torch.randn(size, size, device=device.torch_device).to(device.dtype)
    b = torch.randn(size, size, device=device.torch_device).to(device.dtype)
    best = float("inf")
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < 3:
        device.synchronise()
        start = time.perf_counter()
        torch.mm(a, b)
        device.synchronise()
        best = min(best, time.perf_counter() - start)
        rounds += 1
    return 2 * size**3 / best
