"""SHA-256 of files, read in pieces; and a cache of such hashes for listings, where reading gigabytes would be rude.

Source: FIPS 180-4.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

PIECE = 1 << 20  # bytes read at once


def sha256_file(path: Path, *, from_disk: bool = False) -> str:
    """Hex digest of a file's bytes. `from_disk` asks the system to forget its copy in memory first, where it can."""
    digest = hashlib.sha256()
    piece = bytearray(PIECE)
    with open(path, "rb", buffering=0) as file:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while n := file.readinto(piece):
            digest.update(memoryview(piece)[:n])
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes in memory."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON value in one fixed spelling: keys sorted, no spaces. ValueError for NaN and infinities."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return sha256_bytes(text.encode())


class HashCache:
    """Hashes already computed, valid as long as a file keeps its size and its time of modification.

    Good for listings and for what this process has read back itself. Not for loading: a disk that turns a bit over
    does not change the time. Safe to use from several threads, since single dictionary operations are.
    `entries()` and the argument of the same name let a caller keep the cache in a file.
    """

    def __init__(self, entries: dict[str, tuple[int, int, str]] | None = None, *, from_disk: bool = False) -> None:
        self._known = dict(entries or {})
        self._from_disk = from_disk

    def sha256(self, path: Path) -> str:
        """Hex digest of a file's bytes, read only if the file is new here or has changed."""
        status = path.stat()
        size, time_ns, digest = self._known.get(str(path.absolute()), (-1, -1, ""))
        if (size, time_ns) != (status.st_size, status.st_mtime_ns):
            digest = sha256_file(path, from_disk=self._from_disk)
            self._known[str(path.absolute())] = (status.st_size, status.st_mtime_ns, digest)
        return digest

    def knows(self, path: Path) -> bool:
        """Whether `sha256(path)` would answer without reading the file."""
        status = path.stat()
        return self._known.get(str(path.absolute()), (-1, -1, ""))[:2] == (status.st_size, status.st_mtime_ns)

    def entries(self) -> dict[str, tuple[int, int, str]]:
        """{absolute path: (bytes, time of modification in ns, SHA-256)}."""
        return dict(self._known)
