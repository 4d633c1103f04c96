"""Saving while training goes on: the caller waits for a copy in host memory, a thread brings it to the disk.

The copy uses the same memory each time, as large as weights and optimizer together. One save is under way at a time:
a second `submit` waits for the first. A save that fails is an event and is tried again; after three failures in a row
`check`, `submit`, `wait` and `close` raise StoppedEarly, with the last good step and what to do. Training that goes on
for days without being able to save would be worse than none.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightwell.errors import NotFiniteError, NothingSaved, RunError, StoppedEarly, UserError
from lightwell.files.atomic import json_bytes
from lightwell.files.cache import HashCache
from lightwell.files.paths import command
from lightwell.store.checkpoint import BEGIN_AGAIN, write_checkpoint
from lightwell.store.checkpoints import newest_good, rotate, step_of
from lightwell.store.tensors import tied_names

MAX_FAILURES = 3
Tensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
OnEvent = Callable[[int, str, dict[str, Any]], None]  # step, kind, details; called from the writing thread


@dataclass(frozen=True)
class _Save:
    """One checkpoint, copied and ready to be written."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    about: dict[str, Any]


class BackgroundWriter:
    """Writes a run's checkpoints in a thread, and clears old ones away after each.

    `on_event` is told "saved" (path, seconds), "save_failed" (error, attempt), "checkpoint_broken" and "rotate_failed"
    (error). `best_step` may be set at any time. `pauses`: seconds before the second and third attempt.
    As a context manager it closes itself; if the block raises, the save under way is still finished.
    """

    def __init__(
        self, run: Path, keep: int, on_event: OnEvent | None = None, pauses: tuple[float, float] = (2.0, 20.0)
    ) -> None:
        self.run = run
        self.keep = keep
        self.best_step: int | None = None
        self._on_event = on_event
        self._pauses = pauses
        self._hashes = HashCache(from_disk=True)
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._changed = threading.Condition()  # guards what follows
        self._save: _Save | None = None  # to be written, being written, or to be tried again
        self._pausing = False  # before it is tried again
        self._closing = False
        self._failures = 0  # in a row
        self._last_error: Exception | None = None
        self._bug: BaseException | None = None  # what ended the thread
        self._thread = threading.Thread(target=self._work, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        step: int,
        model: Tensors,
        optimizer: Tensors,
        state: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Copy a checkpoint and have it written; arguments as `write_checkpoint`. Returns when all is copied.

        `model` and `optimizer` may also be pairs that are made one by one, as when shards are gathered: a tensor is
        copied before the next one is asked for. A save that waits to be tried again gives way to this newer one.
        """
        with self._changed:
            while self._save is not None and not self._pausing:
                self._changed.wait()
            self._save = None
        self.check()
        remembered = json.loads(json_bytes(dict(state)))  # as it is now, and certain to be JSON
        save = _Save(
            step, self._copy("model", model), self._copy("optimizer", optimizer), remembered, dict(about or {})
        )
        with self._changed:
            self._save = save
            self._changed.notify_all()

    def check(self) -> None:
        """Raise StoppedEarly after three failures in a row. Cheap: for every step."""
        if self._bug is not None:
            raise self._bug
        if self._failures >= MAX_FAILURES:
            raise self._stopped()

    def wait(self) -> None:
        """Return when nothing is left to write; raises as `check`."""
        with self._changed:
            while self._save is not None:
                self._changed.wait()
        self.check()

    def close(self) -> None:
        """Finish the save under way and end the thread. Raises StoppedEarly if the last one could not be saved."""
        self._finish()
        self.check()
        if self._last_error is not None:
            raise self._stopped()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._finish()

    # The copy

    def _copy(self, part: str, tensors: Tensors) -> dict[str, Tensor]:
        """The tensors in host memory that is used again for each save. Tied ones of a mapping stay tied."""
        tied = tied_names(tensors) if isinstance(tensors, Mapping) else {}
        copies: dict[str, Tensor] = {}
        for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
            if name in tied:
                copies[name] = copies[tied[name]]
                continue
            buffer = self._buffers.get((part, name))
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = self._buffers[part, name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            copies[name] = buffer.copy_(tensor.detach())
        return copies

    # The thread

    def _work(self) -> None:
        try:
            while self._next():
                self._write()
        except BaseException as bug:  # handed to whoever calls next
            self._bug = bug
        with self._changed:
            self._save = None
            self._changed.notify_all()

    def _next(self) -> bool:
        """Wait for something to write and begin it. False when there will be nothing any more."""
        with self._changed:
            while self._save is None and not self._closing:
                self._changed.wait()
            return self._save is not None

    def _write(self) -> None:
        save = self._save
        assert save is not None
        error = self._try(save)
        with self._changed:
            self._last_error = error
            self._failures = self._failures + 1 if error else 0
            # Numbers that are not finite will not become so by waiting; a disk may well get room.
            if error is None or isinstance(error, RunError) or self._failures >= MAX_FAILURES:
                self._save = None
            self._changed.notify_all()
            if self._save is not None:
                pause = self._pauses[self._failures - 1]
                self._pausing = True
                self._changed.wait_for(lambda: self._save is not save or self._closing, pause)
                self._pausing = False

    def _try(self, save: _Save) -> Exception | None:
        """Write one checkpoint and clear old ones away. Returns what kept the first from being done, if anything."""
        start = time.monotonic()
        try:
            path = write_checkpoint(self.run, save.step, save.model, save.optimizer, save.state, save.about)
        except (OSError, UserError) as error:
            self._tell(save.step, "save_failed", {"error": str(error), "attempt": self._failures + 1})
            return error
        self._tell(save.step, "saved", {"path": str(path), "seconds": time.monotonic() - start})
        try:
            rotate(self.run, self.keep, self.best_step, report=self._reporter(save.step), hashes=self._hashes)
        except (OSError, UserError) as error:
            self._tell(save.step, "rotate_failed", {"error": str(error)})
        return None

    def _reporter(self, step: int) -> Callable[[str], None]:
        return lambda sentence: self._tell(step, "checkpoint_broken", {"error": sentence})

    def _tell(self, step: int, kind: str, details: dict[str, Any]) -> None:
        if self._on_event is not None:
            self._on_event(step, kind, details)

    def _finish(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _stopped(self) -> StoppedEarly:
        good = newest_good(self.run, set_aside=False)
        times = f"{self._failures} failures in a row" if self._failures > 1 else "a failure"
        if good is None:
            return NothingSaved(
                f"expected to save the run, got {times}: {self._last_error} Stopped; there is no good checkpoint.",
                "Then give the same command again.",
            )
        return StoppedEarly(
            f"expected to save the run, got {times}: {self._last_error} Stopped; the last good checkpoint is"
            f" step {step_of(good)}.",
            BEGIN_AGAIN
            if isinstance(self._last_error, NotFiniteError)
            else f"Then go on with `{command('resume', self.run)}`.",
            {"step": step_of(good), "checkpoint": str(good)},
        )
