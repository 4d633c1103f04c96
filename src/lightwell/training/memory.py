"""A step that does not fit into a GPU's memory is made again in smaller pieces, and so are all that follow.

The gradient is the same sum, so nothing is lost but some speed. The new size is a decision: a resumed run begins with
it. A step whose update has begun cannot be made again: then the run ends, and its last checkpoint is whole. (On a CPU
nothing is raised when memory runs out: there the planner stays below what is free.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lightwell.errors import StoppedEarly
from lightwell.runtime.device import is_out_of_memory
from lightwell.training.step import StepResult

if TYPE_CHECKING:
    from lightwell.training.loop import Training

MICRO_BATCH = "micro_batch"  # the decision


def within_memory(t: Training, step: Callable[[], StepResult]) -> StepResult:
    """`step()`, with `t.micro_batch_size` halved as often as it needs.

    Raises StoppedEarly if not even a single sequence fits, or the update does not. Among several processes nothing can
    be made again, since the others are in the middle of it: there the error stays.
    """
    while True:
        try:
            return step()
        except RuntimeError as error:
            if t.world.size > 1 or not is_out_of_memory(error):
                raise
        # outside of `except`, whose traceback holds on to the tensors of the step
        t.optimizer.zero_grad()
        t.device.empty_cache()
        if t.optimizer.updating:
            raise StoppedEarly(
                f"stopped at step {t.state.step}: the update of the weights does not fit into memory on"
                f" {t.device.describe()}; what was saved before is whole.",
                "Go on where there is more memory, or choose a smaller model or --set optimizer.name=adamw.",
            )
        if t.micro_batch_size == 1:
            raise StoppedEarly(
                f"stopped at step {t.state.step}: a single sequence does not fit into memory on {t.device.describe()}.",
                "Choose a smaller model or context_length, or --set runtime.checkpoint_activations=true.",
            )
        t.micro_batch_size = -(-t.micro_batch_size // 2)
        t.state.decide(MICRO_BATCH, size=t.micro_batch_size)
