"""Is there room? Asked before a long write begins, so that the answer comes early and nothing is half done."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightwell.errors import SpaceError

MARGIN = 16 << 20  # bytes left to everybody else


def require_space(path: Path, n_bytes: int) -> None:
    """Raise SpaceError unless the disk that holds (or would hold) `path` has `n_bytes` and a small margin free.

    A promise it is not: quotas are invisible here and others write too, so writers still meet a full disk.
    """
    here = path.absolute()
    while not here.exists():
        here = here.parent
    free = shutil.disk_usage(here).free
    if free < n_bytes + MARGIN:
        raise SpaceError(
            f"expected {in_words(n_bytes + MARGIN)} of free space for {path}, got {in_words(free)}.",
            "Free some space or choose another disk.",
        )


def in_words(n_bytes: int) -> str:
    """`1_500_000` -> "1.5 MB"."""
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
