"""Observers watch training without training knowing who watches: progress bar, samples, pulse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[int, int | None, str], None]  # of other long work: done, of how many (None: unknown), of what


@dataclass(frozen=True)
class StepReport:
    """What one step did. `step` counts finished steps; losses in nats per token; `lr_scale` as a share of the peak."""

    step: int
    steps: int
    loss: float
    gradient_norm: float
    lr_scale: float
    tokens: int
    tokens_per_second: float
    mfu: float | None = None  # share of the measured matrix-product peak
    seconds_left: float | None = None
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Observer:
    """Base of all observers; each method does nothing. `wants(step)`: whether the two model hooks are called."""

    def wants(self, step: int) -> bool:
        return False

    def before_forward(self, model: Any, batch: Any) -> None:
        """Before the first micro-batch of a step that this observer wants."""

    def after_backward(self, model: Any) -> None:
        """After the last backward pass, before clipping and the update."""

    def after_step(self, report: StepReport) -> None:
        """After every step."""

    def after_evaluation(self, step: int, heldout: dict[str, float]) -> None:
        """After the held-out part was measured: "heldout.loss", "heldout.bits_per_byte"."""

    def sample(self, step: int, model: Any) -> None:
        """When a sample is due."""

    def after_checkpoint(self, step: int, path: str) -> None:
        """After a checkpoint is safely on disk."""

    def at_end(self) -> None:
        """When training is over, however it ended."""
