"""Files and folders that appear whole or not at all, whatever happens while they are written.

The order that makes it so: everything is written under a temporary name beside the final one; each file is synced to
the disk, the manifest last; then the folders that hold their names; then one rename, which the file system does
indivisibly; then the parent folder, which makes the rename last. Only after that may anything older be removed.
Killed at any moment, the next process finds the old state or the new one, and perhaps leftovers that it sweeps away.
Source: Pillai et al. 2014, "All File Systems Are Not Created Equal" (what may be lost between those steps).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightwell.errors import UserError
from lightwell.files import ops
from lightwell.files.hashing import sha256_file, sha256_json
from lightwell.files.processes import host, is_alive
from lightwell.files.translate import os_errors

MANIFEST = "manifest.json"
_in_use: set[Path] = set()  # temporary names that a thread of this process is writing


@contextmanager
def write_folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """Hand out a temporary folder to fill; when the block ends well, it becomes `final`, durably.

    If the block raises, nothing of it remains. `replace` allows an existing `final`: the old one keeps existing, under
    a name that `recover` knows, until the new one is in place. Missing parents are made.
    Raises UserError if `final` exists (without `replace`) or may not be written, SpaceError if the disk is full.
    """
    final = Path(final)
    with os_errors(f"write {final}"):
        make_dirs(final.parent)
        recover(final)
        if not replace and os.path.lexists(final):
            raise UserError(f"expected {final} not to exist yet, got one that does.", "Choose another, or remove it.")
        with _temporary(final) as temporary:
            ops.make_dir(temporary)
            yield temporary
            sync_tree(temporary)
            if replace and final.exists():
                _put_aside(final)
            ops.rename(temporary, final)
            ops.fsync_dir(final.parent)
    with suppress(OSError):  # what was replaced is of no use, and `recover` would remove it too
        recover(final)


def write_file(path: Path, data: bytes) -> None:
    """Write a file in one indivisible step: afterwards, or after a crash, it holds the old bytes or the new ones.

    Raises SpaceError or UserError where the disk is full or closed.
    """
    path = Path(path)
    with os_errors(f"write {path}"):
        make_dirs(path.parent)
        recover(path)
        with _temporary(path) as temporary:
            write_new(temporary, data, sync=True)
            ops.rename(temporary, path)
            ops.fsync_dir(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_file` of a JSON value. ValueError for NaN and infinities, which JSON does not know."""
    write_file(path, json_bytes(value))


def write_manifest(
    folder: Path, extra: Mapping[str, Any], known: Mapping[str, tuple[int, str]] | None = None
) -> dict[str, Any]:
    """Write `folder/manifest.json`: `extra`, size and SHA-256 of every file in the folder, and a hash of all that.

    Call it last inside `write_folder`. `known` holds (bytes, SHA-256) of files whose writer has computed them, by
    name; the others are read. Returns the manifest. `files.verify` reads it.
    """
    known = known or {}
    files = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        size, digest = known.get(name) or (path.stat().st_size, sha256_file(path))
        files[name] = {"bytes": size, "sha256": digest}
    manifest = {**extra, "files": files}
    manifest["sha256"] = sha256_json(manifest)
    write_new(folder / MANIFEST, json_bytes(manifest))
    return manifest


def write_new(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file that does not exist yet. Not atomic: for temporary names, whose folder is synced later."""
    fd = ops.create(path)
    try:
        ops.write(fd, data)
        if sync:
            ops.fsync(fd)
    finally:
        ops.close(fd)


def json_bytes(value: Any) -> bytes:
    """JSON as we write it: readable, keys in the order given. ValueError for NaN and infinities."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def make_dirs(path: Path) -> None:
    """Make a folder and its missing parents, each durably."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with suppress(FileExistsError):  # another process was quicker
            ops.make_dir(folder)
        ops.fsync_dir(folder.parent)


def sync_tree(folder: Path) -> None:
    """Return when every file below `folder`, its manifest last, and every folder's names are on the disk."""
    files = _files(folder)
    for path in [*files, folder / MANIFEST] if (folder / MANIFEST).exists() else files:
        ops.fsync_file(path)
    for root, _, _ in os.walk(folder, topdown=False):
        ops.fsync_dir(Path(root))


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there. Links are removed, not followed."""
    if not path.is_dir() or path.is_symlink():
        if os.path.lexists(path):
            ops.remove(path)
        return
    for child in sorted(path.iterdir()):
        remove_tree(child)
    ops.remove_dir(path)


def recover(final: Path) -> None:
    """Finish what a killed process began at `final`: bring back a replaced folder, remove its leftovers.

    Only names made from `final`'s are touched, and of temporary ones only those whose process is dead.
    """
    if not final.parent.is_dir():
        return
    for path in sorted(final.parent.iterdir()):
        if path.name.startswith(f".{final.name}."):
            _recover_leftover(path, final)


def recover_all(folder: Path) -> None:
    """`recover` for every name in a folder that is ours alone."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name, dot, _ = path.name[1:].rpartition(".")
        while path.name.startswith(".") and dot:  # the host name in a temporary name may hold dots too
            _recover_leftover(path, folder / name)
            name, dot, _ = name.rpartition(".")


def _recover_leftover(path: Path, final: Path) -> None:
    _restore(final)
    if path.name in (f".{final.name}.replaced", f".{final.name}.removed") or _is_dead_temporary(path, final):
        remove_tree(path)


@contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    """A name beside `final` that nobody else uses; if the block fails, what it left there is removed."""
    temporary = final.with_name(f".{final.name}.tmp-{host()}-{os.getpid()}")
    _in_use.add(temporary)
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):  # the error that brought us here matters more, and `recover` removes the rest
            remove_tree(temporary)
            _restore(final)
        raise
    finally:
        _in_use.discard(temporary)


def _is_dead_temporary(path: Path, final: Path) -> bool:
    """Whether `path` is a temporary name for `final` that no process of this machine is writing.

    One with our own process number that we are not writing is from a namesake: numbers come again, in containers soon.
    """
    start = f".{final.name}.tmp-{host()}-"
    pid = path.name.removeprefix(start)
    if not path.name.startswith(start) or not pid.isdecimal() or path in _in_use:
        return False
    return int(pid) == os.getpid() or not is_alive(int(pid))


def _put_aside(final: Path) -> None:
    ops.rename(final, final.with_name(f".{final.name}.replaced"))
    ops.fsync_dir(final.parent)


def _restore(final: Path) -> None:
    """Bring back what `_put_aside` moved, if nothing has taken its place."""
    aside = final.with_name(f".{final.name}.replaced")
    if aside.exists() and not final.exists():
        ops.rename(aside, final)
        ops.fsync_dir(final.parent)


def _files(folder: Path) -> list[Path]:
    """Every regular file below `folder` but its own manifest, in a fixed order."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in found if path != folder / MANIFEST)
