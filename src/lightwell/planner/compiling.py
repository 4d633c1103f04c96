"""Whether `torch.compile` pays: it makes steps faster, but takes its time first, and again when a run is resumed.

It is tried where the budget has room for that, and kept if more steps fit into what is left of the time. The answer
goes into the run's config, so that a resumed run computes with the same kernels.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from dataclasses import dataclass, field

from lightwell.config.run import RunConfig
from lightwell.model.kernels.build import library
from lightwell.planner.step_time import step_of_parts
from lightwell.runtime.device import Device

TRY_SHARE = 0.12  # of the budget at most, for trying
USUAL_SECONDS, USUAL_SECONDS_PER_LAYER = 20.0, 5.0  # that compiling takes


@dataclass(frozen=True)
class Compiled:
    """Whether it pays, how long a step then takes, and what was found, in a sentence if it was tried."""

    pays: bool
    step_seconds: float
    reasons: list[str] = field(default_factory=list)


def try_compile(config: RunConfig, device: Device, step_seconds: float, seconds: float) -> Compiled:
    """Measure it, if there is time and the user has not decided. step_seconds: without. seconds: left for training."""
    asked = config.runtime.compile
    usual = USUAL_SECONDS + USUAL_SECONDS_PER_LAYER * (config.model.n_layers or 1)
    if asked is not None or usual > TRY_SHARE * seconds or not can_compile(device):
        return Compiled(bool(asked), step_seconds)
    try:
        cost, faster = measure_compiled(config, device)
    except Exception as error:  # a compiler that fails is no reason not to train
        first = (str(error).splitlines() or [""])[0][:100]
        said = f"torch.compile: not used, {type(error).__name__} when it was tried: {first}"
        return Compiled(False, step_seconds, [said])
    left = seconds - cost
    pays = (left - cost) / faster > left / step_seconds  # the training's own model is compiled again
    said = "used, it pays" if pays else "not used, it does not pay"
    figures = f"{1000 * step_seconds:,.0f} ms a step without, {1000 * faster:,.0f} ms with, {cost:.0f} s to compile"
    return Compiled(pays, faster if pays else step_seconds, [f"torch.compile: {said}: {figures}."])


def can_compile(device: Device) -> bool:
    """Whether the tools are there (Triton for a GPU, a C++ compiler for a CPU), and not our own kernels, which are as
    fast on a CPU and ready at once (LOG.md)."""
    if device.kind == "cuda":
        return importlib.util.find_spec("triton") is not None
    return device.kind == "cpu" and library() is None and any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def measure_compiled(config: RunConfig, device: Device, rounds: int = 3) -> tuple[float, float]:
    """(seconds until the first compiled step is done, seconds of a whole step after that)."""
    return step_of_parts(config, device, rounds, math.inf, compile=True)
