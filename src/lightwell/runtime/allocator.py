"""Keep freed memory in the process: glibc otherwise returns every large block to the system and faults it in again.

A training step frees and takes the same large tensors each time. With glibc's defaults each is an mmap of its own, and
the kernel zeroes its pages again at every step. Set when a command's process starts, never on import.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGE = 2**30


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds. True if they were set; False where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGE) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
