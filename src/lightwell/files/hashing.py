"""SHA-256 of files, read in pieces, and of JSON values.

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
