"""The next batch, prepared in another thread while the device works on this one. The same batches, a little sooner."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from lightwell.data.batches import Batch, Batches


class Prefetch:
    """Stands in for `Batches`: `batch(step)` returns what it would, and begins with the step after.

    Since a batch depends on its step alone, asking for another step than the next costs the time, never the values.
    pin: hand out page-locked memory, from which a GPU copies by itself. Close it, or use it in a `with`.
    """

    def __init__(self, batches: Batches, *, pin: bool = False) -> None:
        self.batches, self._pin = batches, pin
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[tuple[int, int, int], Future[Batch]] | None = None

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of a step that process `rank` of `world` holds. An error in the thread is raised here."""
        wanted = (step, rank, world)
        ready = self._ahead[1] if self._ahead and self._ahead[0] == wanted else self._begin(wanted)
        batch = ready.result()
        following = (step + 1, rank, world)
        self._ahead = (following, self._begin(following))
        return batch

    def close(self) -> None:
        """Let the thread end. Nothing is kept for later."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, wanted: tuple[int, int, int]) -> Future[Batch]:
        return self._thread.submit(self._make, wanted)

    def _make(self, wanted: tuple[int, int, int]) -> Batch:
        batch = self.batches.batch(*wanted)
        return batch.pin() if self._pin else batch
