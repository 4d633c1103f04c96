"""What training writes down: the main process into run.sqlite, the others nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class Record(Protocol):
    """The part of `store.database.RunDatabase` that training writes to."""

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def add_event(self, step: int, kind: str, details: Mapping[str, Any] | None = None) -> None: ...

    def flush(self, *, durable: bool = False) -> None: ...


class NoRecord:
    """Keeps nothing: what a process has that is not the main one."""

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def add_event(self, step: int, kind: str, details: Mapping[str, Any] | None = None) -> None:
        pass

    def flush(self, *, durable: bool = False) -> None:
        pass

    def add_sample(self, step: int, prompt: str, text: str) -> None:
        pass

    def add_layers(self, step: int, rows: Iterable[tuple[str, str, float]]) -> None:
        pass
