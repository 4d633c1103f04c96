"""When and how a run is saved: often enough that little can be lost, seldom enough that it costs little."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightwell.config.run import CheckpointSection
from lightwell.errors import LightwellError, RunError, StoppedEarly
from lightwell.runtime.observer import Observer
from lightwell.runtime.world import World
from lightwell.store.checkpoint import Checkpoint, write_checkpoint
from lightwell.store.checkpoints import read_newest, rotate
from lightwell.store.database import RunDatabase
from lightwell.training.optimizer import Optimizer
from lightwell.training.pace import Pace
from lightwell.training.state import TrainState

AT_RISK_SECONDS, AT_RISK_SHARE = 300.0, 0.02  # the most work that may be lost, whichever is less
FAILURES_ALLOWED = 3  # saves that may fail in a row


class Saver:
    """Writes checkpoints of `model` and `optimizer` into `run`; only the main process does."""

    def __init__(
        self,
        run: Path,
        model: nn.Module,
        optimizer: Optimizer,
        section: CheckpointSection,
        world: World,
        database: RunDatabase,
        about: dict[str, Any],
        observers: Sequence[Observer] = (),
    ) -> None:
        self.run, self.model, self.optimizer, self.section = run, model, optimizer, section
        self.world, self.database, self.about, self.observers = world, database, about, observers
        self.best_step: int | None = None
        self.last_step = -1
        self.every = 1
        self.failures = 0

    def begin(self, pace: Pace, state: TrainState) -> None:
        """Decide how many steps lie between two saves; the same on every process."""
        by_time = AT_RISK_SECONDS / max(pace.step_seconds, 1e-6)
        every = self.section.every or max(1, int(min(by_time, AT_RISK_SHARE * pace.steps(state))))
        self.every = int(self.world.agree(every))  # type: ignore[call-overload]

    def due(self, state: TrainState) -> bool:
        """Whether more work is at risk than may be lost."""
        return state.step - self.last_step >= self.every

    def save(self, state: TrainState) -> None:
        """Save now, unless this step is saved already. A failure is an event; three in a row end the run."""
        if state.step == self.last_step and not state.owed:
            return
        weights, moments = full_tensors(self.model.state_dict()), full_tensors(self.optimizer.state_tensors())
        self.last_step = state.step
        if not self.world.is_main:
            return
        self.database.flush(durable=True)
        try:
            path = write_checkpoint(self.run, state.step, weights, moments, state.to_json(), self.about)
            rotate(self.run, self.section.keep, self.best_step, report=self._report)
        except (LightwellError, OSError) as error:
            self._failed(state, error)
            return
        self.failures = 0
        for observer in self.observers:
            observer.after_checkpoint(state.step, str(path))

    def restore(self, state: TrainState, optimizer: Optimizer) -> None:
        """Put the newest good checkpoint back into model, optimizer and `state`. Raises RunError if there is none."""
        checkpoint = read_newest(self.run, self._report, set_aside=self.world.is_main)
        if checkpoint is None:
            raise RunError(f"expected a good checkpoint in {self.run}, found none.", "The run must begin again.")
        load_checkpoint(checkpoint, self.model, optimizer, state)
        self.last_step = state.step

    def finish(self) -> None:
        """Wait for what is still being written."""
        self.database.flush(durable=True)

    def _failed(self, state: TrainState, error: Exception) -> None:
        self.failures += 1
        self.last_step = -1  # so that the next occasion tries again
        self.database.add_event(state.step, "save_failed", {"error": str(error), "in_a_row": self.failures})
        if self.failures >= FAILURES_ALLOWED:
            raise StoppedEarly(
                f"saving failed {self.failures} times in a row at step {state.step}: {error}",
                f"Everything up to the last good checkpoint is safe. Go on with: lightwell resume {self.run}",
            ) from error

    def _report(self, sentence: str) -> None:
        self.database.add_event(max(0, self.last_step), "broken_checkpoint", {"found": sentence})


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, state: TrainState) -> None:
    """Set model, optimizer and `state` to what a checkpoint holds."""
    model.load_state_dict(checkpoint.model)
    optimizer.load_state_tensors(checkpoint.optimizer)
    for key, value in vars(TrainState.from_json(checkpoint.state)).items():
        setattr(state, key, value)


def full_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sharded tensors gathered whole, one by one, so that any number of processes can go on from them."""
    return {name: tensor.full_tensor() if is_sharded(tensor) else tensor for name, tensor in tensors.items()}  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
