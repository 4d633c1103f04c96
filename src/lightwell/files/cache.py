"""Hashes that are remembered, for listings, where reading gigabytes would be rude."""

from __future__ import annotations

from pathlib import Path

from lightwell.files.hashing import sha256_file


class HashCache:
    """Hashes already computed, valid as long as a file keeps its size and its time of modification.

    Good for listings and for what this process has read back itself. Not for loading: a disk that turns a bit over
    does not change the time. Safe to use from several threads, since single dictionary operations are.
    """

    def __init__(self, *, from_disk: bool = False) -> None:
        self._known: dict[str, tuple[int, int, str]] = {}  # by absolute path: bytes, time of modification in ns, digest
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
