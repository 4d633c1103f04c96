"""Limits, safe names, free space, mounts, and the words for what the system says."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwell.errors import DamagedError, FormatError, SpaceError, UserError
from lightwell.files import space
from lightwell.files.limits import json_depth, parse_json, read_json, read_toml, safetensors_header, value_depth
from lightwell.files.mounts import file_system, is_local
from lightwell.files.paths import safe_join
from lightwell.files.space import in_words, require_space
from lightwell.files.translate import os_errors, translate

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text(), child, max_size=4),
    max_leaves=20,
)


def slow_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(slow_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(slow_depth, value), default=0)
    return 0


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_depth_is_the_depth(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert json_depth(text) == value_depth(value) == slow_depth(value)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\ 1a', max_size=200).map(str.encode))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, "here")
    except DamagedError:
        return
    assert value == json.loads(data)


@pytest.mark.parametrize("text", [b'"' + b'\\"' * 2_000_000, b'"' * 500_001, b"[" * 2_000_000, b'["' * 500_000])
def test_hostile_text_costs_no_time(text: bytes) -> None:
    start = time.process_time()
    with pytest.raises(DamagedError):
        parse_json(text, "here")
    assert time.process_time() - start < 3


def test_json_limits(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('{"a": [1, 2, {"b": "[[[[["}]}')
    assert read_json(path, max_depth=3) == {"a": [1, 2, {"b": "[[[[["}]}
    with pytest.raises(DamagedError, match="at most 2 levels deep"):
        read_json(path, max_depth=2)
    with pytest.raises(DamagedError, match=r"expected at most 10 bytes in .*f, got 29 bytes"):
        read_json(path, max_bytes=10)
    for text in ("", "{", "NaN", "[Infinity]", "9" * 5000, "{'a': 1}"):
        path.write_text(text)
        with pytest.raises(FormatError, match="expected JSON in"):
            read_json(path, error=FormatError)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing")


def test_toml_limits(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('a = [[1]]\n[b.c]\nd = "[[["\n')
    assert read_toml(path, max_depth=3) == {"a": [[1]], "b": {"c": {"d": "[[["}}}
    with pytest.raises(DamagedError, match="at most 2 levels"):
        read_toml(path, max_depth=2)


def test_a_header_comes_in_the_order_of_the_bytes(tmp_path: Path) -> None:
    entries = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "none": {"dtype": "F64", "shape": [0, 3], "data_offsets": [4, 4]},
        "__metadata__": {"format": "pt"},
    }
    text = json.dumps(entries).encode()
    (tmp_path / "f").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    header, start = safetensors_header(tmp_path / "f")
    assert start == 8 + len(text)
    assert header == entries
    assert list(header) == ["__metadata__", "a", "none", "b"]
    (tmp_path / "f").write_bytes(len(text).to_bytes(8, "little") + text + bytes(13))
    with pytest.raises(FormatError, match="gap or overlap"):
        safetensors_header(tmp_path / "f", FormatError)


def test_a_giant_header_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with open(path, "wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate((1 << 30) + 8)  # a sparse file: it is really that long
    with pytest.raises(DamagedError, match=r"a header of at most 16\.8 MB inside .*f, got 1\.1 GB in 1\.1 GB"):
        safetensors_header(path)


GOOD_NAMES = ["a", "a/b.txt", "sub dir/ü", "..a", "a..", "...", "a/./b", "x" * 255, "sub/link inside"]
BAD_NAMES = [
    "",
    ".",
    "..",
    "/",
    "/a",
    "//a",
    "../a",
    "a/../../b",
    "a/..",
    "C:/a",
    "c:a",
    "a\\b",
    "a\0",
    "\udcff",
    "y" * 256,
    "out",
    "out/x",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    os.symlink(tmp_path / "outside", tmp_path / "folder" / "out")
    os.symlink("../sub", tmp_path / "folder" / "sub" / "link inside")
    return tmp_path / "folder"


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_stay_inside(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert safe_join(folder, name) == folder / name
    monkeypatch.chdir(folder.parent)
    assert safe_join(Path("folder"), name) == Path("folder") / name
    os.symlink("folder", "through a link")
    assert safe_join(Path("through a link"), name) == Path("through a link") / name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out(folder: Path, name: str) -> None:
    with pytest.raises(DamagedError, match="leads out of it"):
        safe_join(folder, name)


@settings(deadline=None)
@given(st.text(alphabet="a./\\:\0C ", max_size=12))
def test_any_name_stays_inside_or_is_refused(name: str) -> None:
    folder = Path("/nowhere/folder")
    try:
        path = safe_join(folder, name)
    except DamagedError:
        return
    assert os.path.normpath(path).startswith("/nowhere/folder/")


def test_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_space(tmp_path / "not" / "there" / "yet", 1000)
    with pytest.raises(SpaceError, match=r"expected 1000\.0 TB of free space for .*yet, got"):
        require_space(tmp_path / "not" / "there" / "yet", 10**15)
    asked = []
    usage = space.shutil._ntuple_diskusage(0, 0, space.MARGIN + 10)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: asked.append(path) or usage)
    require_space(tmp_path / "new", 10)
    with pytest.raises(SpaceError):
        require_space(tmp_path / "new", 11)
    assert asked == [tmp_path, tmp_path]
    monkeypatch.chdir(tmp_path)
    require_space(Path("new"), 10)


def test_sizes_in_words() -> None:
    assert [in_words(n) for n in (0, 999, 1000, 1_500_000, 2 * 10**9, 3 * 10**15)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.5 MB", "2.0 GB", "3000.0 TB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, SpaceError, "a full disk"),
        (errno.EDQUOT, SpaceError, "quota"),
        (errno.EFBIG, SpaceError, "a file-size limit"),
        (errno.EACCES, UserError, "no permission"),
        (errno.EPERM, UserError, "no permission"),
        (errno.EROFS, UserError, "a read-only file system"),
        (errno.EIO, UserError, "an input/output error"),
    ],
)
def test_what_the_system_says_in_words(code: int, kind: type[UserError], words: str) -> None:
    cause = OSError(code, os.strerror(code), "/some/file")
    with (
        pytest.raises(kind, match=f"expected to save it, got .*{words}.* at /some/file") as caught,
        os_errors("save it"),
    ):
        raise cause
    assert caught.value.__cause__ is cause
    assert type(caught.value) is kind
    assert caught.value.hint
    assert " at " not in translate(OSError(code, "x"), "save it").message


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(FileNotFoundError), os_errors("save it"):
        raise FileNotFoundError(errno.ENOENT, "gone")
    with pytest.raises(ValueError, match="x"), os_errors("save it"):
        raise ValueError("x")


def test_local_and_network_file_systems(tmp_path: Path) -> None:
    real = os.path.realpath(tmp_path)
    mounts = tmp_path / "mounts"
    lines = [
        "/dev/root / ext4 rw 0 0",
        f"server:/x {real}/far nfs4 rw 0 0",
        f"//server/y {real}/with\\040space cifs rw 0 0",
        f"tmpfs {real}/far/near tmpfs rw 0 0",
        f"old {real}/twice ext4 rw 0 0",
        f"new {real}/twice fuse.sshfs rw 0 0",
    ]
    mounts.write_text("\n".join(lines) + "\n")
    expected = {
        "here": "ext4", "far": "nfs4", "far/a/b": "nfs4", "farther": "ext4", "with space/x": "cifs",
        "far/near": "tmpfs", "twice": "fuse.sshfs",
    }  # fmt: skip
    assert {name: file_system(tmp_path / name, mounts) for name in expected} == expected
    assert file_system(tmp_path, tmp_path / "no such table") == ""
    assert isinstance(is_local(tmp_path), bool)
