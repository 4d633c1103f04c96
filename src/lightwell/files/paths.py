"""Names that come from files, made into paths that stay where they should."""

from __future__ import annotations

import os
import shlex
from pathlib import Path, PurePosixPath, PureWindowsPath

from lightwell.errors import DamagedError


def safe_join(folder: Path, name: str) -> Path:
    """`folder / name`, certain to lie inside `folder` (links followed). `name` uses "/" and is relative.

    Raises DamagedError for an absolute name, one with "..", a backslash or a drive, and a link that leads out.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or not _is_plain(name):
        raise _leads_out(folder, name)
    path = folder.joinpath(*parts)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise _leads_out(folder, name)
    return path


def _is_plain(name: str) -> bool:
    """Whether a name means the same relative path on every system."""
    try:
        longest = max(len(part.encode()) for part in name.split("/"))
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        return False
    return longest <= 255 and not (name.startswith("/") or "\\" in name or "\0" in name or PureWindowsPath(name).drive)


def _leads_out(folder: Path, name: str) -> DamagedError:
    return DamagedError(
        f"expected a file inside {folder}, got {name!r}, which leads out of it.",
        "Do not use this folder unless you know who made it.",
    )


def command(*words: object) -> str:
    """A command line of ours to copy: paths with blanks in them quoted."""
    return shlex.join(["lightwell", *map(str, words)])
