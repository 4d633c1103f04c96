"""The whole self-test: a table, what is bad, and a verdict."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lightwell.runtime.device import Device
from lightwell.runtime.observer import Progress
from lightwell.selftest.operations import Row, check_operations
from lightwell.selftest.resume import check_resume
from lightwell.selftest.steps import FAMILIES, check_family


@dataclass(frozen=True)
class Verdict:
    """What was found. `resume`: None if it holds, a sentence if not. `seconds`: how long it all took.

    `advice`: for each bad path, the setting that goes around it.
    """

    device: str
    rows: list[Row]
    resume: str | None
    advice: list[str]
    seconds: float

    @property
    def good(self) -> bool:
        return all(row.good for row in self.rows) and self.resume is None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"good": self.good, "rows": [asdict(row) | {"good": row.good} for row in self.rows]}


def selftest(device: Device, *, compile: bool = False, progress: Progress = lambda done, total, what: None) -> Verdict:
    """Check operations, steps of both families, and resume, in the precision and with the kernels of training.

    compile: check the compiled forward pass too.
    """
    began = time.perf_counter()
    progress(0, 3, "operations")
    rows = check_operations(device)
    progress(1, 3, "steps")
    for name in FAMILIES:
        for compiled in (False, True) if compile else (False,):
            rows += check_family(name, device, compiled)
    progress(2, 3, "kill and resume")
    with tempfile.TemporaryDirectory(prefix="lightwell-selftest-") as folder:
        resume = check_resume(Path(folder), device)
    progress(3, 3, "done")
    return Verdict(device.describe(), rows, resume, advice(rows, device), time.perf_counter() - began)


def advice(rows: list[Row], device: Device) -> list[str]:
    """The settings that go around what is bad: compiled code, then autocast, then the device."""
    bad = [row for row in rows if not row.good]
    if not bad:
        return []
    if all("compiled" in row.name for row in bad):
        return ["--set runtime.compile=false"]
    if device.dtype == torch.bfloat16:
        return ["--set runtime.dtype=float32"]
    return [] if device.kind == "cpu" else ["--device cpu"]
