"""What the operating system says when the disk is full or a folder closed, as one sentence with what to do next."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from lightwell.errors import SpaceError, UserError

_FULL = {errno.ENOSPC: "a full disk", errno.EFBIG: "a file-size limit"} | {
    getattr(errno, "EDQUOT", -1): "a used-up disk quota"
}
_CLOSED = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "a read-only file system",
}
_NAME = {
    errno.ENAMETOOLONG: "a name that is too long",
    errno.ELOOP: "symbolic links in a circle",
    errno.ENOTDIR: "a file where a folder should be",
    errno.EISDIR: "a folder of that name",
    errno.ENOTEMPTY: "a folder of that name, which is not empty",
}


@contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Inside, a full or closed disk raises SpaceError or UserError. `what` completes "expected to ...": "write FILE".

    Other OSErrors pass unchanged: they are either somebody's bug or handled where they can be understood.
    """
    try:
        yield
    except OSError as error:
        translated = translate(error, what)
        if translated is None:
            raise
        raise translated from error


def translate(error: OSError, what: str) -> UserError | None:
    """The error that a person should see for `error`, or None if it is not one of theirs."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    where = f" at {name}" if 0 < len(name) <= 200 else ""
    if error.errno in _FULL:
        return SpaceError(
            f"expected to {what}, got {_FULL[error.errno]}{where}.",
            "Free some space or choose another disk, and go on.",
        )
    if error.errno in _CLOSED:
        reads = what.startswith("read ") and error.errno != errno.EROFS
        hint = "Change its permissions." if reads else "Choose a folder that you may write to."
        return UserError(f"expected to {what}, got {_CLOSED[error.errno]}{where}.", hint)
    if error.errno == errno.ENOENT and what.startswith(("make ", "write ")):
        return UserError(f"expected to {what}, got a place where nothing can be made.", "Choose another place.")
    if error.errno in _NAME:
        return UserError(f"expected to {what}, got {_NAME[error.errno]}.", "Choose another place.")
    if error.errno == errno.EMFILE:
        return UserError(f"expected to {what}, got too many open files.", "Raise the limit with `ulimit -n 4096`.")
    if error.errno == errno.EIO:
        return UserError(
            f"expected to {what}, got an input/output error of the disk{where}.", "Check the disk; copy what matters."
        )
    return None
