"""Where the time of a training step goes: torch's profiler over ten steps, as a Chrome trace and as a table."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lightwell.config.run import RunConfig
from lightwell.model.count import flops_per_token
from lightwell.planner.fit import rows_at_once
from lightwell.planner.step_time import Trial
from lightwell.runtime.device import Device
from lightwell.runtime.peak import measure_peak_flops

STEPS = 10


def profile_steps(config: RunConfig, device: Device, trace: Path, rows: int = 15) -> dict[str, Any]:
    """Profile ten whole steps of a complete config on random tokens. Writes `trace` for chrome://tracing or Perfetto.

    Returns `table` (text), `operations` (name, share, seconds, calls), `tokens_per_second` and `share_of_peak`.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would print when it starts and stops
    trial = Trial(config, device, config.train.batch_size or 1, rows_at_once(config))
    for _ in range(3):
        trial.step()
    start = time.perf_counter()
    for _ in range(STEPS):
        trial.step()
    seconds = (time.perf_counter() - start) / STEPS
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.kind == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            trial.step()
    profiler.export_chrome_trace(str(trace))
    averages = profiler.key_averages()
    if device.kind == "cuda":  # its kernels alone: what called them has their time as well
        kernels = [e for e in averages if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        events = [(e.key, e.self_device_time_total, e.count) for e in kernels]
    else:
        events = [(e.key, e.self_cpu_time_total, e.count) for e in averages]
    total = sum(micros for _, micros, _ in events) or 1
    events.sort(key=lambda event: -event[1])
    operations = [
        {"name": name, "share": micros / total, "seconds_per_step": micros / 1e6 / STEPS, "calls_per_step": n / STEPS}
        for name, micros, n in events[:rows]
    ]
    model = config.model.complete()
    rate = trial.tokens / seconds
    share = rate * flops_per_token(model, model.context_length)["total"] / measure_peak_flops(device)
    lines = [
        f"{o['share']:6.1%} {1000 * o['seconds_per_step']:9.2f} ms {o['calls_per_step']:7.1f} x  {o['name']}"
        for o in operations
    ]
    how = f"{torch.get_num_threads()} threads, {str(device.dtype).removeprefix('torch.')}"
    head = f"{rate:,.0f} tokens/s, {share:.0%} of the matrix-product peak ({how})"
    return {
        "table": "\n".join([head, *lines, f"Chrome trace: {trace}"]),
        "operations": operations,
        "tokens_per_second": rate,
        "share_of_peak": share,
        "trace": str(trace),
    }
