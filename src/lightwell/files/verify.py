"""Are these the bytes that were written? A folder's manifest gives size and SHA-256 of each file, and of itself."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightwell.errors import DamagedError
from lightwell.files.atomic import MANIFEST
from lightwell.files.hashing import sha256_file, sha256_json
from lightwell.files.limits import read_json
from lightwell.files.paths import safe_join
from lightwell.files.translate import os_errors

_HINT = "Restore it from a copy, or go on without it."


def verify_manifest(folder: Path, hash_file: Callable[[Path], str] = sha256_file) -> dict[str, Any]:
    """The folder's manifest, once every file it lists has been found with the size and SHA-256 it states.

    `hash_file` may be `HashCache().sha256` in listings. Raises DamagedError naming the first file that differs.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest, manifest["files"], hash_file)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The folder's manifest, itself verified and each name in it inside the folder. Raises DamagedError otherwise."""
    path = safe_join(folder, MANIFEST)
    if not path.is_file():
        raise DamagedError(f"expected {path}, got none.", _HINT)
    manifest = read_json(path)
    if not _is_manifest(manifest):
        raise DamagedError(f"expected a manifest in {path}, got something else.", _HINT)
    if manifest["sha256"] != sha256_json({key: value for key, value in manifest.items() if key != "sha256"}):
        raise DamagedError(f"expected the manifest that was written, got a changed {path}.", _HINT)
    for name in manifest["files"]:
        safe_join(folder, name)
    return manifest


def verify_files(
    folder: Path, manifest: dict[str, Any], names: Iterable[str], hash_file: Callable[[Path], str] = sha256_file
) -> None:
    """Raise DamagedError unless each of `names` is in the manifest and is as it states. Sizes first: they are cheap."""
    paths = {name: verify_size(folder, manifest, name) for name in names}
    for name, path in paths.items():
        with os_errors(f"read {path}"), reading(path):
            digest = hash_file(path)
        verify_digest(path, manifest["files"][name]["sha256"], digest)


def verify_size(folder: Path, manifest: dict[str, Any], name: str) -> Path:
    """The path of a file that the manifest lists and that has the size it states. Raises DamagedError otherwise."""
    path = safe_join(folder, name)
    if name not in manifest["files"]:
        raise DamagedError(f"expected {name} in the manifest of {folder}, got none.", _HINT)
    if not path.is_file():
        raise DamagedError(f"expected {path}, got none.", _HINT)
    expected, size = manifest["files"][name]["bytes"], path.stat().st_size
    if size != expected:
        raise DamagedError(f"expected {expected} bytes in {path}, got {size}.", _HINT)
    return path


def verify_digest(path: Path, expected: str, digest: str) -> None:
    """Raise DamagedError unless the two hex digests are equal."""
    if digest != expected:
        raise DamagedError(f"expected the bytes that were written, got others in {path}.", _HINT)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, a disk that cannot read its own bytes counts as damage to `path`: DamagedError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            raise DamagedError(f"expected to read {path}, got an input/output error of the disk.", _HINT) from error
        raise


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("sha256"), str)
        and isinstance(value.get("files"), dict)
        and all(
            isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
            for entry in value["files"].values()
        )
    )
