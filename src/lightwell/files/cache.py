"""Hashes that are remembered, for listings, where reading gigabytes would be rude."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightwell.errors import DamagedError, UserError
from lightwell.files.atomic import write_json
from lightwell.files.hashing import sha256_file
from lightwell.files.limits import read_json

_ENTRY = [int, int, str]


class HashCache:
    """Hashes already computed, valid as long as a file keeps its size and its time of modification.

    Good for listings and for what this process has read back itself. Not for loading: a disk that turns a bit over
    does not change the time. Safe to use from several threads, since single dictionary operations are.
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


@contextmanager
def kept_hashes(path: Path) -> Iterator[HashCache]:
    """A cache that outlives the process in a JSON file, for commands that list. Without the file it begins empty.

    Where the file cannot be written (somebody else's run), nothing is kept, which costs the next listing time.
    """
    old = _read_entries(path)
    cache = HashCache(old)
    yield cache
    new = {name: entry for name, entry in cache.entries().items() if Path(name).exists()}
    if new != old:
        with suppress(UserError):
            write_json(path, new)


def _read_entries(path: Path) -> dict[str, tuple[int, int, str]]:
    """What is kept in `path`, as far as it makes sense."""
    try:
        value = read_json(path)
    except (OSError, DamagedError):
        return {}
    kept = value.items() if isinstance(value, dict) else ()
    return {name: tuple(entry) for name, entry in kept if isinstance(entry, list) and list(map(type, entry)) == _ENTRY}
