"""Is a folder on a disk of this machine, or does a network lie between? SQLite's journal depends on it."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Local file systems whose memory mapping and locks a write-ahead log can rely on.
_LOCAL = {
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "zfs",
    "f2fs",
    "bcachefs",
    "jfs",
    "tmpfs",
    "ramfs",
    "overlay",
    "ntfs3",
}


def is_local(path: Path) -> bool:
    """Whether `path` (which may not exist yet) is certainly on a local disk. Unknown counts as no."""
    return file_system(path) in _LOCAL


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The name of the file system that holds `path`, e.g. "ext4" or "nfs4"; empty where the system does not tell."""
    if not mounts.exists():
        return ""
    real = Path(os.path.realpath(path))
    best, kind = -1, ""
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        _, where, name, *_ = line.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where))  # "\\040" is a space
        if real.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), name
    return kind
