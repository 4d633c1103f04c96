"""Which checkpoint is used, which are cleared away, which never."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from store_crash_model import before_each, fail_at
from store_helpers import content_of, flip, save

from lightwell.errors import DamagedError, RunError, UserError
from lightwell.files import ops
from lightwell.files.cache import HashCache
from lightwell.store.checkpoints import (
    list_checkpoints,
    newest_good,
    pin,
    pinned_steps,
    read_newest,
    rotate,
    step_of,
    unpin,
    verify_checkpoint,
)


def steps(run: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run)]


def damage(run: Path, step: int) -> None:
    flip(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors", -1)


def test_steps_are_listed_in_order_and_nothing_else(run: Path) -> None:
    assert list_checkpoints(run) == []
    assert newest_good(run) is None
    for step in (9, 100_000_000, 10, 99_999_999):
        save(run, step)
    (run / "checkpoints" / "step-00000011.broken").mkdir()
    (run / "checkpoints" / "notes").mkdir()
    assert steps(run) == [9, 10, 99_999_999, 100_000_000]
    assert newest_good(run) == run / "checkpoints" / "step-100000000"


def test_broken_ones_are_set_aside_and_named(run: Path, said: list[str]) -> None:
    for step in (1, 2, 3):
        save(run, step)
    damage(run, 3)
    (run / "checkpoints" / "step-00000002" / "state.json").unlink()
    checkpoint = read_newest(run, said.append)
    assert content_of(checkpoint) == 1
    assert "Step 3 cannot be used, it is set aside as step-00000003.broken" in said[0]
    assert "model.safetensors" in said[0]
    assert "state.json" in said[1]
    assert (run / "checkpoints" / "step-00000003.broken" / "model.safetensors").exists()
    said.clear()
    assert newest_good(run, said.append) == checkpoint.path
    assert said == []
    save(run, 3)  # the run comes by again, and it breaks again
    damage(run, 3)
    newest_good(run)
    assert (run / "checkpoints" / "step-00000003.broken-2").exists()


def test_readers_change_nothing(run: Path, said: list[str]) -> None:
    save(run, 1)
    save(run, 2)
    damage(run, 2)
    (run / "checkpoints" / ".step-00000003.removed").mkdir()
    before = sorted(os.listdir(run / "checkpoints"))
    assert newest_good(run, said.append, set_aside=False) == run / "checkpoints" / "step-00000001"
    assert "passed over" in said[0]
    assert sorted(os.listdir(run / "checkpoints")) == before


def test_no_good_one_is_none_and_all_are_kept_aside(run: Path, said: list[str]) -> None:
    for step in (1, 2):
        save(run, step)
        damage(run, step)
    assert read_newest(run, said.append) is None
    assert len(said) == len(list((run / "checkpoints").glob("*.broken"))) == 2


def test_an_unknown_format_is_no_damage(run: Path) -> None:
    """A checkpoint of a newer version must not be set aside, nor an older one silently be used instead."""
    from test_store_checkpoint import rewrite_manifest

    save(run, 1)
    rewrite_manifest(save(run, 2), {"format": 9})
    with pytest.raises(RunError, match="format 9"):
        newest_good(run)
    assert steps(run) == [1, 2]


def test_rotation_keeps_the_newest_the_best_and_the_pinned(run: Path) -> None:
    for step in range(1, 9):
        save(run, step)
    pin(run, 3)
    assert rotate(run, 2, best_step=5, pinned=[1]) == [2, 4, 6]
    assert steps(run) == [1, 3, 5, 7, 8]
    assert rotate(run, 2, best_step=8, pinned=()) == [1, 5]
    unpin(run, 3)
    assert rotate(run, 2, best_step=8) == [3]
    assert rotate(run, 0) == [7]  # at least one stays
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000008"]


def test_rotation_never_leaves_only_broken_ones(run: Path, said: list[str]) -> None:
    for step in range(1, 6):
        save(run, step)
    damage(run, 4)
    damage(run, 5)
    assert rotate(run, 2, report=said.append) == []
    assert len(said) == 2
    assert steps(run) == [1, 2, 3]
    assert rotate(run, 1) == [1, 2]
    assert newest_good(run) == run / "checkpoints" / "step-00000003"


def test_rotation_with_one_good_among_the_newest(run: Path, said: list[str]) -> None:
    for step in range(1, 5):
        save(run, step)
    damage(run, 4)
    assert rotate(run, 2, report=said.append) == [1, 2]
    assert "Step 4" in said[0]
    assert content_of(read_newest(run)) == 3


def test_what_was_verified_is_not_read_again(run: Path) -> None:
    hashes = CountingCache()
    for step in range(1, 10):
        save(run, step)
        rotate(run, 3, hashes=hashes)
    assert steps(run) == [7, 8, 9]
    # The first reading is at step 4, when step 1 must go; it serves as long as that checkpoint is among the newest.
    assert hashes.read == [4, 7]


class CountingCache(HashCache):
    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def sha256(self, path: Path) -> str:
        if not self.knows(path) and path.name == "model.safetensors":
            self.read.append(step_of(path.parent))
        return super().sha256(path)


def test_pins(run: Path) -> None:
    save(run, 1)
    save(run, 2)
    pin(run, 1)
    pin(run, 1)
    assert pinned_steps(run) == [1]
    verify_checkpoint(run / "checkpoints" / "step-00000001")
    with pytest.raises(RunError, match=r"got 7\. .* has: 1, 2\."):
        pin(run, 7)
    with pytest.raises(RunError, match="got 7"):
        unpin(run, 7)
    save(run, 1)  # again: still pinned
    assert pinned_steps(run) == [1]
    unpin(run, 1)
    unpin(run, 1)
    assert pinned_steps(run) == []


def test_a_pin_at_the_last_moment_counts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning needs no lock, so it may come at any moment of a rotation: it holds, or says that it is too late."""
    for k in range(20):
        for step in (1, 2):
            save(run, step)
        done, refused = 0, []

        def pin_now() -> None:
            nonlocal done
            done += 1
            if done == k + 1:  # noqa: B023
                try:
                    pin(run, 1)
                except RunError as error:
                    refused.append(error)  # noqa: B023

        with monkeypatch.context() as patch:
            before_each(patch, pin_now)
            rotate(run, 1)
        assert (1 in steps(run)) == (done > k and not refused)
        if 1 in steps(run):
            assert pinned_steps(run) == [1]
            unpin(run, 1)


def test_a_checkpoint_that_vanishes_while_a_reader_looks(run: Path, said: list[str], monkeypatch) -> None:
    from lightwell.store import checkpoints

    save(run, 1)
    save(run, 2)
    real = checkpoints.verify_files

    def rotated_away_meanwhile(folder: Path, *rest) -> None:
        if step_of(folder) == 2:
            ops.rename(folder, folder.with_name(".gone"))
        real(folder, *rest)

    monkeypatch.setattr(checkpoints, "verify_files", rotated_away_meanwhile)
    assert newest_good(run, said.append, set_aside=False) == run / "checkpoints" / "step-00000001"
    assert said == []


def test_listings_read_unchanged_files_once(run: Path) -> None:
    path, hashes = save(run, 1), HashCache()
    verify_checkpoint(path, hashes)
    times = os.stat(path / "model.safetensors")
    flip(path / "model.safetensors", -1)
    os.utime(path / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    verify_checkpoint(path, hashes)  # as promised: by size and time
    with pytest.raises(DamagedError):
        verify_checkpoint(path)
    os.utime(path / "model.safetensors")
    with pytest.raises(DamagedError):
        verify_checkpoint(path, hashes)


def test_closed_folders_are_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    save(run, 2)
    damage(run, 2)
    closed = lambda: OSError(errno.EROFS, os.strerror(errno.EROFS))  # noqa: E731
    with pytest.raises(UserError, match=r"expected to set .*step-00000002 aside, got a read-only file system"):
        fail_at(monkeypatch, 0, closed, lambda: newest_good(run))
    assert newest_good(run, set_aside=False) == run / "checkpoints" / "step-00000001"
    with pytest.raises(UserError, match="expected to pin step 1, got a read-only file system"):
        fail_at(monkeypatch, 0, closed, lambda: pin(run, 1))


def test_a_clock_that_jumps_changes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order comes from the step, never from a time: files dated before 1970 or far ahead are the same to us."""
    dice = random.Random(0)
    for step in range(1, 6):
        for file in save(run, step).iterdir():
            when = dice.choice([-(10**9), 0, 4 * 10**9])
            os.utime(file, (when, when))
    assert content_of(read_newest(run)) == 5
    assert rotate(run, 2) == [1, 2, 3]
