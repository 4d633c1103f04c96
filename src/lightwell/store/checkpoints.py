"""The checkpoints of a run: which there are, the newest good one, which to clear away, which to keep for ever.

There is no file that points at the latest one: such a pointer can be wrong. The newest good checkpoint is found by
verifying, newest first. One that fails is renamed to `step-XXXXXXXX.broken` and named, so that nothing is lost that
somebody may want to look at, and the one before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from lightwell.errors import DamagedError, RunError
from lightwell.files import ops
from lightwell.files.atomic import recover_all, remove_tree, write_new
from lightwell.files.cache import HashCache
from lightwell.files.paths import safe_join
from lightwell.files.translate import os_errors
from lightwell.files.verify import verify_files
from lightwell.store.checkpoint import (
    FOLDER,
    MODEL,
    OPTIMIZER,
    PIN,
    STATE,
    Checkpoint,
    checkpoint_manifest,
    checkpoint_path,
    read_checkpoint,
)

_NAME = re.compile(r"step-(\d{8,})")

T = TypeVar("T")
Report = Callable[[str], None]  # is told one sentence about a broken checkpoint


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of `run`, oldest first, unverified; broken ones and leftovers are not among them."""
    folder = safe_join(run, FOLDER)
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _NAME.fullmatch(path.name)
    if not match:
        raise RunError(f"expected a checkpoint folder such as step-00000500, got {path}.")
    return int(match[1])


def verify_checkpoint(path: Path, hashes: HashCache | None = None) -> None:
    """Read every byte of a checkpoint and raise DamagedError naming the file that is not as written.

    With `hashes`, files that it knows to be unchanged are not read again: good for listings.
    """
    _inside(path)
    manifest = checkpoint_manifest(path)
    with os_errors(f"read {path}"):
        verify_files(path, manifest, manifest["files"], (hashes or HashCache()).sha256)


def newest_good(
    run: Path, report: Report | None = None, *, set_aside: bool = True, hashes: HashCache | None = None
) -> Path | None:
    """The newest checkpoint of which every byte is as written; None if there is none.

    Broken ones are told to `report` and, with `set_aside`, renamed. Whoever does not hold the run's lock must pass
    `set_aside=False`. Raises RunError for a checkpoint of an unknown format: that is no damage, and no reason to go
    back in time.
    """

    def check(path: Path) -> Path:
        verify_checkpoint(path, hashes)
        return path

    return _first_good(run, check, report, set_aside)


def read_newest(run: Path, report: Report | None = None, *, set_aside: bool = True) -> Checkpoint | None:
    """As `newest_good`, and loaded: each byte is read once, verified while it is loaded."""

    def read(path: Path) -> Checkpoint:
        _inside(path)
        return read_checkpoint(path)

    return _first_good(run, read, report, set_aside)


def rotate(
    run: Path,
    keep: int,
    best_step: int | None = None,
    pinned: Iterable[int] = (),
    *,
    report: Report | None = None,
    hashes: HashCache | None = None,
) -> list[int]:
    """Clear old checkpoints away and return the steps that are gone.

    Kept: the newest `keep`, the one of `best_step`, pinned ones (`pinned`, and those of `pin`). Nothing is cleared
    away before one of the newest has been read back and verified; `hashes` remembers that, so that a file is read
    once and not at each call. If all of the newest are broken, everything stays.
    """
    hashes = hashes or HashCache()
    checkpoints = list_checkpoints(run)
    newest, old = checkpoints[-max(keep, 1) :], checkpoints[: -max(keep, 1)]
    protected = {best_step, *pinned}
    old = [path for path in old if step_of(path) not in protected and not is_pinned(path)]
    if not old or not _one_verifies(newest, hashes, report):
        return []
    return [step_of(path) for path in old if _clear_away(path)]


def pin(run: Path, step: int) -> None:
    """Keep the checkpoint of `step` for ever: its folder gets an empty file, in one indivisible step.

    Needs no lock. Raises RunError, listing the steps, if there is no such checkpoint.
    """
    path = _existing(run, step)
    if is_pinned(path):
        return
    try:
        with os_errors(f"pin step {step}"):
            write_new(path / PIN, b"", sync=True)
            ops.fsync_dir(path)
    except FileNotFoundError:  # cleared away this very moment
        raise _no_such_step(run, step) from None


def unpin(run: Path, step: int) -> None:
    """Let the checkpoint of `step` be cleared away in its turn. Raises RunError if there is none."""
    path = _existing(run, step)
    if is_pinned(path):
        with os_errors(f"unpin step {step}"):
            ops.remove(path / PIN)


def is_pinned(path: Path) -> bool:
    return (path / PIN).exists()


def pinned_steps(run: Path) -> list[int]:
    """The steps whose checkpoints are pinned, in order."""
    return [step_of(path) for path in list_checkpoints(run) if is_pinned(path)]


def _first_good(run: Path, attempt: Callable[[Path], T], report: Report | None, set_aside: bool) -> T | None:
    """What `attempt` makes of the newest checkpoint at which it raises no DamagedError."""
    if set_aside:
        with os_errors(f"tidy {run / FOLDER}"):
            recover_all(safe_join(run, FOLDER))
    for path in reversed(list_checkpoints(run)):
        try:
            return attempt(path)
        except DamagedError as error:
            if path.exists():  # otherwise the run's own process has cleared it away just now
                _handle_broken(path, error, report, set_aside)
    return None


def _handle_broken(path: Path, error: DamagedError, report: Report | None, set_aside: bool) -> None:
    what_now = "it is passed over"
    if set_aside:
        with os_errors(f"set {path} aside"):
            what_now = f"it is set aside as {_set_aside(path).name}"
    if report:
        report(f"Step {step_of(path)} cannot be used, {what_now}: {error.message}")


def _set_aside(path: Path) -> Path:
    aside, n = path.with_name(f"{path.name}.broken"), 1
    while aside.exists():
        n += 1
        aside = path.with_name(f"{path.name}.broken-{n}")
    ops.rename(path, aside)
    ops.fsync_dir(path.parent)
    return aside


def _one_verifies(newest: list[Path], hashes: HashCache, report: Report | None) -> bool:
    """Whether one of `newest` is good: known to be so from an earlier reading, or else read now, newest first."""
    for path in sorted(newest, key=lambda path: (not _is_known(path, hashes), -step_of(path))):
        try:
            verify_checkpoint(path, hashes)
            return True
        except DamagedError as error:
            _handle_broken(path, error, report, set_aside=True)
    return False


def _is_known(path: Path, hashes: HashCache) -> bool:
    return all(hashes.knows(path / name) for name in (MODEL, OPTIMIZER, STATE))


def _clear_away(path: Path) -> bool:
    """Remove a checkpoint so that no half of it is ever seen. False if it has been pinned this very moment."""
    doomed = path.with_name(f".{path.name}.removed")
    with os_errors(f"clear {path} away"):
        remove_tree(doomed)
        ops.rename(path, doomed)
        ops.fsync_dir(path.parent)
        if is_pinned(doomed):
            ops.rename(doomed, path)
            return False
        remove_tree(doomed)
    return True


def _existing(run: Path, step: int) -> Path:
    path = checkpoint_path(run, step)
    if path not in list_checkpoints(run):
        raise _no_such_step(run, step)
    return path


def _no_such_step(run: Path, step: int) -> RunError:
    steps = ", ".join(str(step_of(path)) for path in list_checkpoints(run)) or "none"
    return RunError(f"expected a step whose checkpoint is there, got {step}.", f"{run} has: {steps}.")


def _inside(path: Path) -> None:
    """Raise DamagedError if a checkpoint's folder is a link that leads out of the run."""
    safe_join(path.parent, path.name)
