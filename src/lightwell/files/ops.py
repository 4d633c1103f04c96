"""The operations that change the disk, one small function each. Nothing else in `files` and `store` writes.

Having them in one place is what makes crash safety testable: a test replaces these functions by ones that write down
what was done, or that stop at the k-th operation, and then looks at what is left. (SQLite does its own writing.)
Callers write `ops.rename(...)`, never `from ops import rename`, so that the replacement is seen.

Sources: POSIX.1-2017 write, fsync, rename; Apple's fsync(2), which says that only F_FULLFSYNC reaches the disk.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def make_dir(path: Path) -> None:
    os.mkdir(path)


def create(path: Path) -> int:
    """Open a new file for writing and return its descriptor. An existing one, or a link in its place, is an error."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def write(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`: the system may take less at a time than it is given."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def fsync(fd: int) -> None:
    """Return when the file's bytes are on the disk."""
    _sync(fd)


def close(fd: int) -> None:
    os.close(fd)


def fsync_file(path: Path) -> None:
    """`fsync` for a file that somebody else wrote and closed."""
    fd = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def fsync_dir(path: Path) -> None:
    """Return when the folder's list of names is on the disk; where folders cannot be synced, that is not ours to do."""
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(fd)


def rename(old: Path, new: Path) -> None:
    """Give a file or folder its new name in one indivisible step; a file that had the name is gone."""
    os.replace(old, new)


def remove(path: Path) -> None:
    os.unlink(path)


def remove_dir(path: Path) -> None:
    os.rmdir(path)


def _sync(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise
    os.fsync(fd)
