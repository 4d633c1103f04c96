"""One process at a time in a folder: the second is refused, with the name of the first.

The lock is the operating system's (flock; on Windows a locked byte): it ends with the process, so a dead one never
blocks, however it died. What the file says (process, machine, since when) is for people. Where a file system knows no
locks, that text is all there is: a living process of this machine is then still respected, and `Lock.note` says so.
Source: flock(2).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightwell.errors import DamagedError, LockedError
from lightwell.files.limits import parse_json
from lightwell.files.paths import safe_join
from lightwell.files.processes import host, is_alive
from lightwell.files.translate import os_errors

NAME = "lock"
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()  # descriptors; a forked child must not keep our locks alive


@dataclass(frozen=True)
class Lock:
    """A held lock. `note` is empty, or one sentence for the person when the file system cannot lock."""

    path: Path
    note: str = ""


@contextmanager
def lock_folder(folder: Path) -> Iterator[Lock]:
    """Hold `folder`'s lock during the block. Raises LockedError naming process, machine and time if another has it."""
    path = safe_join(folder, NAME)
    with os_errors(f"lock {folder}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        note = _take(fd, folder)
        _held.add(fd)
        with os_errors(f"lock {folder}"):
            _record(fd, {"pid": os.getpid(), "host": host(), "time": datetime.now(UTC).isoformat(timespec="seconds")})
        yield Lock(path, note)
        os.ftruncate(fd, 0)
    finally:
        _held.discard(fd)
        os.close(fd)


def holder(folder: Path) -> dict[str, Any] | None:
    """Who has the lock of `folder` ({"pid", "host", "time"}), or None if it is free. For listings.

    The system is asked by trying to lock, but only when the file names somebody who may be alive: then the attempt
    fails and disturbs nobody.
    """
    path = safe_join(folder, NAME)
    if not path.is_file():
        return None
    fd = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    try:
        recorded = _recorded(fd)
        if recorded is None or (recorded["host"] == host() and not _may_live(recorded)):
            return None
        taken = _system_lock(fd)
        return recorded if taken is False or (taken is None and _may_live(recorded)) else None
    finally:
        os.close(fd)


def _take(fd: int, folder: Path) -> str:
    """Lock the open file or raise LockedError. Returns the sentence to say where locking is not supported."""
    for pause in (0.0, 0.05, 0.2):  # `holder` may be looking
        time.sleep(pause)
        taken = _system_lock(fd)
        if taken is not False:
            break
    if taken:
        return ""
    recorded = _recorded(fd)
    if taken is None and not (recorded and _may_live(recorded)):
        return (
            f"The file system of {folder} cannot lock: make sure that no process on another machine uses this folder."
        )
    who = "another process"
    if recorded:
        who = f"process {recorded['pid']} on {recorded['host']}, since {recorded['time']}"
    raise LockedError(
        f"expected {folder} to be free, got one in use by {who}.",
        "Wait until it ends or stop it, then try again; or work on a copy.",
    )


def _system_lock(fd: int) -> bool | None:
    """Ask the system for the lock: True taken, False somebody else's, None not supported here."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(fd, 1 << 30, os.SEEK_SET)  # a byte beyond the text, so that others can still read it
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _record(fd: int, holder: dict[str, Any]) -> None:
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, json.dumps(holder).encode())


def _recorded(fd: int) -> dict[str, Any] | None:
    """What the lock file says, or None if it says nothing that makes sense."""
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        value = parse_json(os.read(fd, 4096), "lock")
    except DamagedError:
        return None
    return value if isinstance(value, dict) and {"pid", "host", "time"} <= value.keys() else None


def _may_live(recorded: dict[str, Any]) -> bool:
    """Whether the recorded process runs. One on another machine cannot be asked: `Lock.note` warns of those."""
    return recorded["host"] == host() and isinstance(recorded["pid"], int) and is_alive(recorded["pid"])


def _close_in_child() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
