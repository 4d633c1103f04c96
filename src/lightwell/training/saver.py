"""When and how a run is saved: often enough that little can be lost, seldom enough that it costs little.

A checkpoint is copied in memory and written by a thread (store/background.py): training waits for the copy only.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from lightwell.config.run import CheckpointSection
from lightwell.errors import RunError, StoppedEarly
from lightwell.runtime.observer import Observer
from lightwell.runtime.world import World
from lightwell.store.background import BackgroundWriter
from lightwell.store.checkpoint import Checkpoint, read_checkpoint
from lightwell.store.checkpoints import read_newest
from lightwell.training.optimizer import Optimizer
from lightwell.training.record import Record
from lightwell.training.replicas import Replicas
from lightwell.training.state import TrainState

# The most work that may be lost: a share of the run, but not so little that saving it slows the rest down (LOG.md).
AT_RISK_SHARE, AT_RISK_LEAST, AT_RISK_MOST = 0.02, 10.0, 300.0  # and seconds


def save_every(steps: int, step_seconds: float) -> int:
    """Steps between two saves, so that no more can be lost than may be."""
    step_seconds = max(step_seconds, 1e-6)
    seconds = min(max(AT_RISK_SHARE * steps * step_seconds, AT_RISK_LEAST), AT_RISK_MOST)
    return max(1, min(int(seconds / step_seconds), -(-steps // 4)))  # a very short run four times all the same


class Saver:
    """Saves `replicas` and `optimizer` into `run`; the main process writes. `every`: steps between two saves.

    A context manager: leaving it finishes the save under way, and after an orderly end raises StoppedEarly if the last
    state could not be saved.
    """

    def __init__(
        self,
        run: Path,
        replicas: Replicas,
        optimizer: Optimizer,
        section: CheckpointSection,
        world: World,
        record: Record,
        about: dict[str, Any],
        observers: Sequence[Observer] = (),
    ) -> None:
        self.run, self.replicas, self.optimizer = run, replicas, optimizer
        self.world, self.record, self.about, self.observers = world, record, about, observers
        self.every = 1
        self._happened: queue.SimpleQueue[tuple[int, str, dict[str, Any]]] = queue.SimpleQueue()
        self._keep = section.keep
        self._writer: BackgroundWriter | None = None  # while entered, in the main process
        self._saved: dict[str, Any] | None = None  # the state as last saved

    def due(self, state: TrainState) -> bool:
        """Whether more work is at risk than may be lost. Not amid bad steps: what is bad is not worth keeping."""
        return not state.bad_steps and (self._saved is None or state.step - self._saved["step"] >= self.every)

    def save(self, state: TrainState) -> None:
        """Have the state saved, unless it is as last saved. Returns when it is copied."""
        now = state.to_json()
        if self._saved == now:
            return
        self._saved = now
        self.world.at(state.step, "saving")
        weights, moments = self.replicas.weights(), self.optimizer.state_tensors()
        if self._writer is not None:
            self.record.flush(durable=True)
            self._writer.best_step = state.best_step
            with suppress(StoppedEarly):  # `trouble` says so at the next step, to all processes
                self._writer.submit(state.step, weights, moments, now, self.about)
        for _ in chain(weights, moments):  # gathering whole tensors takes all processes, also where none is written
            pass

    def trouble(self) -> str | None:
        """Why saving has failed for good, if it has; passes on what the writing thread has said. For every step."""
        self._drain()
        if self._writer is None:
            return None
        try:
            self._writer.check()
        except StoppedEarly:
            return "saving failed"
        return None

    def restore(self, state: TrainState) -> None:
        """Put the newest good checkpoint back into weights, moments and `state`. Raises RunError if there is none."""

        if self._writer is not None:
            self._writer.wait()
        self.load(read_for_all(self.run, self.world, self._broken), state)

    def load(self, checkpoint: Checkpoint, state: TrainState) -> None:
        """Set weights, moments and `state` to what a checkpoint holds."""
        self.replicas.load_weights(checkpoint.model)
        self.optimizer.load_state_tensors(checkpoint.optimizer)
        state.become(checkpoint.state)
        self._saved = state.to_json()

    def __enter__(self) -> Saver:
        if self.world.is_main:
            self._writer = BackgroundWriter(self.run, self._keep, self._on_event)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        def close() -> None:
            if self._writer is not None:
                try:
                    self._writer.__exit__(kind, error, at)
                finally:
                    self._drain()
                    self.record.flush(durable=True)

        if kind is None:
            self.world.on_main(close)  # if the last save fails, no other process goes on to what follows it
        else:
            close()

    def _on_event(self, step: int, kind: str, details: dict[str, Any]) -> None:
        self._happened.put((step, kind, details))  # in the writing thread

    def _broken(self, sentence: str) -> None:
        self.record.add_event(self._saved["step"] if self._saved else 0, "checkpoint_broken", {"error": sentence})

    def _drain(self) -> None:
        while not self._happened.empty():
            step, kind, details = self._happened.get()
            if kind != "saved":
                self.record.add_event(step, kind, details)
                continue
            for observer in self.observers:
                observer.after_checkpoint(step, details["path"])


def read_for_all(run: Path, world: World, report: Callable[[str], None]) -> Checkpoint:
    """The newest good checkpoint, on every process: the main one finds it, the others read the same.

    Raises RunError if there is none. Broken ones are set aside and told to `report`.
    """
    found: list[Checkpoint] = []

    def find() -> str:
        newest = read_newest(run, report)
        if newest is None:
            raise RunError(f"expected a good checkpoint in {run}, found none.", "The run must begin again.")
        found.append(newest)
        return str(newest.path)

    path = Path(world.on_main(find))
    return found[0] if found else read_checkpoint(path)
