"""What to do when numbers go bad: notice, say where it began, and if it goes on, go back and pass over that data.

A step with a loss or gradient that is not finite never reaches the weights (see step.py); this is about what follows.
Spikes are losses far above the usual of the last steps: median and median absolute deviation are not moved by the
spikes themselves (Leys et al. 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from lightwell.config.run import GuardSection
from lightwell.training.sharding import local
from lightwell.training.state import TrainState

Event = tuple[str, dict[str, Any]]
ENOUGH = 16  # losses from which "usual" can be told
GO_BACKS = 5  # times to go back to the same step before giving up


def judge(state: TrainState, section: GuardSection, loss: float, gradient_norm: float, finite: bool) -> list[Event]:
    """Events that one step's numbers give rise to; keeps the state's counts."""
    if not finite:
        state.bad_steps += 1
        return [
            ("nonfinite", {"loss": _said(loss), "gradient_norm": _said(gradient_norm), "in_a_row": state.bad_steps})
        ]
    usual = state.recent_losses
    state.recent_losses = [*usual, loss][-section.window :]  # spikes too, so that a new level becomes usual
    z = robust_z(loss, usual) if len(usual) >= min(ENOUGH, section.window) else 0.0
    spiked = z > section.spike_z
    state.bad_steps = state.bad_steps + 1 if spiked and section.spikes == "rewind" else 0
    return [("spike", {"loss": loss, "usual": median(usual), "z": round(z, 1)})] if spiked else []


def must_go_back(state: TrainState, section: GuardSection) -> bool:
    """Whether so many steps in a row were bad that waiting will not help."""
    return state.bad_steps >= section.patience


def robust_z(value: float, usual: list[float]) -> float:
    """How many standard deviations `value` lies above the median, the deviation estimated by the median one."""
    middle = median(usual)
    spread = 1.4826 * median(abs(x - middle) for x in usual)  # of a normal distribution: its standard deviation
    return (value - middle) / max(spread, 1e-3)


def give_up(state: TrainState) -> bool:
    """Whether passing over data has been tried so often from this step that something else must be wrong."""
    return sum(d["kind"] == "skip" and d["at"] == state.step for d in state.decisions) >= GO_BACKS


def first_bad_layer(model: nn.Module, forward: Callable[[], float]) -> str | None:
    """The first module, in the order of the forward pass, whose output is not finite; "the loss" if only that is not.

    `forward()` runs the model once more and returns the loss. None if all of it is finite. A weight that is not finite
    is named rather than the module that uses it.
    """
    found = [f"the weight {name}" for name, p in model.named_parameters() if not torch.isfinite(local(p)).all()]

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        loss = forward()  # with a bad weight too: of a sharded model it takes all processes
    finally:
        for handle in hooks:
            handle.remove()
    if found:
        return found[0]
    return None if math.isfinite(loss) else "the loss"


def _said(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)  # JSON has no NaN
