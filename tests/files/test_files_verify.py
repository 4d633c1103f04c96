"""Manifests and hashes: any change is noticed and named; the cache reads unchanged files once."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from lightwell.errors import DamagedError
from lightwell.files import cache as cache_module
from lightwell.files import verify
from lightwell.files.atomic import write_folder, write_manifest
from lightwell.files.cache import HashCache
from lightwell.files.hashing import PIECE, sha256_file, sha256_json
from lightwell.files.verify import read_manifest, verify_files, verify_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with write_folder(tmp_path / "folder") as folder:
        (folder / "data.bin").write_bytes(b"0123456789" * 20)
        (folder / "sub").mkdir()
        (folder / "sub" / "empty").touch()
        write_manifest(folder, {"kind": "test", "numbers": [1, 2.5, None, "ü"]})
    return tmp_path / "folder"


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
@pytest.mark.parametrize("from_disk", [False, True])
def test_hash_of_any_length(tmp_path: Path, size: int, from_disk: bool) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "f").write_bytes(data[:size])
    assert sha256_file(tmp_path / "f", from_disk=from_disk) == hashlib.sha256(data[:size]).hexdigest()


def test_a_json_value_has_one_hash_however_it_is_spelt() -> None:
    assert sha256_json({"b": [1, {"y": None, "x": 1.5}], "a": "ü"}) == sha256_json(
        {"a": "ü", "b": [1, {"x": 1.5, "y": None}]}
    )
    assert sha256_json([1, 2]) != sha256_json([2, 1])
    with pytest.raises(ValueError, match="JSON"):
        sha256_json(float("inf"))


def test_what_was_written_verifies(folder: Path) -> None:
    manifest = verify_manifest(folder)
    assert manifest["numbers"] == [1, 2.5, None, "ü"]
    assert manifest["files"] == {
        "data.bin": {"bytes": 200, "sha256": hashlib.sha256(b"0123456789" * 20).hexdigest()},
        "sub/empty": {"bytes": 0, "sha256": hashlib.sha256().hexdigest()},
    }
    (folder / "more").touch()  # is nobody's business
    verify_manifest(folder)


def test_every_changed_byte_is_noticed_and_its_file_named(folder: Path) -> None:
    for name in ("data.bin", "manifest.json"):
        good = (folder / name).read_bytes()
        for at in range(len(good)):
            (folder / name).write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
            with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
                verify_manifest(folder)
        (folder / name).write_bytes(good)
    verify_manifest(folder)


@pytest.mark.parametrize("name", ["data.bin", "sub/empty", "manifest.json"])
def test_missing_and_longer_files_are_named(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(good + b"x")
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        verify_manifest(folder)
    (folder / name).unlink()
    with pytest.raises(DamagedError, match=name.replace(".", r"\.") + ".*got none"):
        verify_manifest(folder)
    (folder / name).mkdir()
    with pytest.raises(DamagedError, match="got none"):
        verify_manifest(folder)


def test_a_file_that_the_manifest_lacks_is_not_verified_silently(folder: Path) -> None:
    (folder / "more").touch()
    with pytest.raises(DamagedError, match="expected more in the manifest"):
        verify_files(folder, read_manifest(folder), ["more"])


def test_known_hashes_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightwell.files import atomic

    monkeypatch.setattr(atomic, "sha256_file", lambda path: pytest.fail(f"read {path}"))
    (tmp_path / "f").write_bytes(b"abc")
    manifest = write_manifest(tmp_path, {}, {"f": (3, hashlib.sha256(b"abc").hexdigest())})
    assert verify_manifest(tmp_path) == manifest


def test_a_disk_that_cannot_read_is_damage(folder: Path) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "no")

    with pytest.raises(DamagedError, match=r"expected to read .*data\.bin, got an input/output error"):
        verify_manifest(folder, fail)


def test_sizes_are_compared_before_anything_is_read(folder: Path) -> None:
    (folder / "sub" / "empty").write_bytes(b"x")
    with pytest.raises(DamagedError, match="expected 0 bytes"):
        verify_manifest(folder, lambda path: pytest.fail(f"read {path}"))


def test_the_cache_reads_a_file_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        cache_module,
        "sha256_file",
        lambda path, *, from_disk: read.append(from_disk) or sha256_file(path, from_disk=from_disk),
    )
    path, cache = tmp_path / "f", HashCache()
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 10**18))
    assert not cache.knows(path)
    assert cache.sha256(path) == cache.sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert cache.knows(path)
    assert read == [False]
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 10**18 + 1))
    assert not cache.knows(path)
    assert cache.sha256(path) == hashlib.sha256(b"two").hexdigest()
    path.write_bytes(b"three")
    os.utime(path, ns=(0, 10**18 + 1))
    assert cache.sha256(path) == hashlib.sha256(b"three").hexdigest()
    os.utime(path, ns=(0, -(10**18)))  # a clock that jumped far back is a change like any other
    cache.sha256(path)
    assert read == [False] * 4
    HashCache(from_disk=True).sha256(path)
    assert read == [False] * 4 + [True]


def test_the_manifest_of_a_link_out_is_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").rename(tmp_path / "m")
    os.symlink(tmp_path / "m", folder / "manifest.json")
    with pytest.raises(DamagedError, match="leads out"):
        verify.read_manifest(folder)
