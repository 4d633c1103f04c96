"""Notices when the processes of a run have come to a standstill, says where each of them is, and ends them.

One process that hangs holds up all: the others wait in a collective operation, for ever. Here each process keeps a
thread that writes down, once a second, the step and phase it is in, where all can read it. If a process's own place
has not changed for too long, its thread reads the others' places and looks whether their threads are alive; the process
that is behind is the one whose thread has stopped (a frozen or dead machine) or whose step is the lowest. Then the
process ends, the launcher ends the rest, and starts them again from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist

BEAT = 1.0  # seconds between two notes
STANDSTILL = 75  # exit code, BSD's "temporary failure: try again"


class Watch:
    """store: where the notes are kept. seconds: how long a process may stay at one place while it waits for others."""

    def __init__(self, store: dist.Store, rank: int, size: int, seconds: float) -> None:
        self._store, self._rank, self._size, self._seconds = store, rank, size, seconds
        self._place: tuple[int, str, float] | None = None  # step, phase, since when; None: nothing to wait for
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="standstill-watch", daemon=True)
        self._thread.start()

    def at(self, step: int, phase: str) -> None:
        """This process is now here. An empty phase: it is busy by itself, however long that takes."""
        self._place = (step, phase, time.monotonic()) if phase else None

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        beat = 0
        try:
            while not self._over.wait(BEAT):
                beat += 1
                place = self._place
                step, phase, since = place or (0, "", 0.0)
                self._store.set(f"place/{self._rank}", json.dumps({"step": step, "phase": phase, "beat": beat}))
                if place is not None and time.monotonic() - since > self._seconds:
                    self._end(place)
        except RuntimeError:  # the store is gone: rank 0 or the launcher has ended, and ends this process too
            return

    def _end(self, place: tuple[int, str, float]) -> None:
        """Say where everybody is and leave, unless the wait ends while we look."""
        before = self._places()
        time.sleep(3 * BEAT)
        after = self._places()
        if self._place != place:
            return
        silent = {rank for rank in range(self._size) if rank != self._rank and before[rank] == after[rank]}
        awake = [rank for rank in range(self._size) if rank not in silent]
        if self._rank == awake[0]:  # one of them speaks
            os.write(2, (report(after, silent, self._seconds) + "\n").encode())
        else:
            time.sleep(BEAT)  # let it finish
        os._exit(STANDSTILL)

    def _places(self) -> list[dict[str, Any]]:
        keys = [f"place/{rank}" for rank in range(self._size)]
        never = {"step": 0, "phase": "not begun", "beat": 0}
        return [json.loads(self._store.get(key)) if self._store.check([key]) else never for key in keys]


def report(places: list[dict[str, Any]], silent: set[int], seconds: float) -> str:
    """The places of all processes in lines, and who is behind."""
    lowest = min(place["step"] for place in places)
    last = {rank for rank, place in enumerate(places) if place["step"] == lowest}
    behind = silent or (last if len(last) < len(places) else set())
    lines = [f"lightwell: the processes have stood still for {seconds:g} seconds; ending them."]
    for rank, place in enumerate(places):
        alive = "last heard of there, does not answer" if rank in silent else "waits"
        mark = "  <- behind" if rank in behind else ""
        lines.append(f"  rank {rank}: step {place['step']}, {place['phase'] or 'busy'}, {alive}{mark}")
    return "\n".join(lines)
