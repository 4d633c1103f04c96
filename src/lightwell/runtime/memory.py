"""How much memory this process may still take and has taken, in bytes; None where the system does not say."""

from __future__ import annotations

import sys
from pathlib import Path

VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def free_bytes(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can be taken without swapping: the machine's available memory, cut to the cgroup's limit."""
    limits = []
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    version_2, version_1 = (cgroup, "memory.max", "memory.current"), (cgroup / "memory", *VERSION_1)
    for folder, limit, used in (version_2, version_1):
        if (folder / limit).is_file() and (folder / used).is_file():
            most = (folder / limit).read_text().strip()
            if most != "max":
                limits.append(int(most) - int((folder / used).read_text()) + _cached(folder / "memory.stat"))
    return max(0, min(limits)) if limits else None


def _cached(stat: Path) -> int:
    """Bytes of cached files: they count as used, and the system gives them up first."""
    rows = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    total = "total_" if "total_inactive_file" in rows else ""  # version 1: with the groups below this one
    return sum(int(rows.get(f"{total}{kind}_file", 0)) for kind in ("inactive", "active"))


def peak_bytes() -> int | None:
    """The most resident memory this process has had, in bytes; None on systems that do not say."""
    status = Path("/proc/self/status")  # getrusage of a process just begun tells the peak of the one that began it
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
