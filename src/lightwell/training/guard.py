"""What to do when numbers go bad: notice, say where it began, and if it goes on, go back and pass over that data.

A step with a loss or gradient that is not finite never reaches the weights (see step.py); this is about what follows.
Spikes are losses far above the usual of the last steps: median and median absolute deviation are not moved by the
spikes themselves (Leys et al. 2013).
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import torch
from torch import nn

from lightwell.config.run import GuardSection
from lightwell.training.state import TrainState

Event = tuple[str, dict[str, Any]]


def judge(state: TrainState, section: GuardSection, loss: float, gradient_norm: float, finite: bool) -> list[Event]:
    """Events that one step's numbers give rise to; keeps the state's counts."""
    if not finite:
        state.bad_steps += 1
        return [
            ("nonfinite", {"loss": _said(loss), "gradient_norm": _said(gradient_norm), "in_a_row": state.bad_steps})
        ]
    z = robust_z(loss, state.recent_losses) if len(state.recent_losses) >= min(16, section.window) else 0.0
    if z > section.spike_z:
        if section.spikes == "rewind":
            state.bad_steps += 1
        return [("spike", {"loss": loss, "usual": median(state.recent_losses), "z": round(z, 1)})]
    state.bad_steps = 0
    state.recent_losses = [*state.recent_losses, loss][-section.window :]
    return []


def must_go_back(state: TrainState, section: GuardSection) -> bool:
    """Whether so many steps in a row were bad that waiting will not help."""
    return state.bad_steps >= section.patience


def robust_z(value: float, usual: list[float]) -> float:
    """How many standard deviations `value` lies above the median, the deviation estimated by the median one."""
    middle = median(usual)
    spread = 1.4826 * median(abs(x - middle) for x in usual)  # of a normal distribution: its standard deviation
    return (value - middle) / max(spread, 1e-3)


def first_bad_layer(model: nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> str:
    """The first module, in the order of the forward pass, that makes a number which is not finite from finite ones;
    "the loss" or "the backward pass" if no module does. Runs the model once more, without a gradient."""
    found: list[str] = []
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name}"

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            loss, _ = model(ids, targets)
    finally:
        for handle in hooks:
            handle.remove()
    if found:
        return found[0]
    return "the backward pass" if math.isfinite(float(loss)) else "the loss"


def _said(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)  # JSON has no NaN
