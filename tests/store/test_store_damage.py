"""Runs from strangers: refused, nothing executed, nothing read or written outside, no memory or time wasted."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from store_helpers import content_of, save

from lightwell.errors import DamagedError
from lightwell.files.hashing import sha256_bytes, sha256_json
from lightwell.store.checkpoint import read_checkpoint
from lightwell.store.checkpoints import list_checkpoints, newest_good, read_newest, rotate


def replace(path: Path, name: str, data: bytes) -> None:
    """Replace a file of a checkpoint as a stranger would, with a manifest that fits it."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": sha256_bytes(data)}
    write_manifest(path, manifest)


def write_manifest(path: Path, manifest: dict) -> None:
    manifest.pop("sha256", None)
    (path / "manifest.json").write_text(json.dumps(manifest | {"sha256": sha256_json(manifest)}))


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


GIGABYTE = 1 << 30
HOSTILE_TENSORS = {
    "a header of a gigabyte": GIGABYTE.to_bytes(8, "little") + b"{}",
    "a header of 2**64 - 1 bytes": b"\xff" * 8 + b"{}",
    "too short for a length": b"\x01\x00",
    "no header": bytes(8),
    "not JSON": (5).to_bytes(8, "little") + b"hello",
    "not text": (4).to_bytes(8, "little") + b"\xff\xfe\x00\x01",
    "deep JSON": (100_002).to_bytes(8, "little") + b"[" * 50_001 + b"]" * 50_001,
    "deep in a tensor": header(a=entry(shape=[[[[[2]]]]])) + bytes(8),
    "a list": (2).to_bytes(8, "little") + b"[]",
    "a tensor that is text": header(a="x"),
    "a missing key": header(a={"dtype": "F32", "shape": [2]}) + bytes(8),
    "one key more": header(a=entry(code="x")) + bytes(8),
    "an unknown type": header(a=entry("OBJECT")) + bytes(8),
    "a type that is a list": header(a=entry(["F32"])) + bytes(8),
    "negative sizes": header(a=entry(shape=[-2, -1])) + bytes(8),
    "sizes that are texts": header(a=entry(shape=["2"])) + bytes(8),
    "sizes that are fractions": header(a=entry(shape=[2.0])) + bytes(8),
    "sizes that are truths": header(a=entry(shape=[True, 2])) + bytes(8),
    "enormous sizes": header(a=entry(shape=[2**62, 2**62])) + bytes(8),
    "empty and enormous": header(a=entry(shape=[0, 2**64], offsets=(0, 0))),
    "sizes beyond any machine": header(a=entry(shape=[10**400])) + bytes(8),
    "a million dimensions": header(a=entry(shape=[1] * 1_000_000, offsets=(0, 4))) + bytes(4),
    "backward offsets": header(a=entry(offsets=(8, 0))) + bytes(8),
    "three offsets": header(a=entry(offsets=(0, 4, 8))) + bytes(8),
    "beyond the end": header(a=entry(shape=[4], offsets=(0, 16))) + bytes(8),
    "before the data": header(a=entry(offsets=(-8, 0))) + bytes(8),
    "overlapping": header(a=entry(), b=entry(offsets=(4, 12))) + bytes(12),
    "the same bytes twice": header(a=entry(), b=entry()) + bytes(8),
    "a gap": header(a=entry(), b=entry(offsets=(12, 20))) + bytes(20),
    "bytes left over": header(a=entry()) + bytes(12),
    "metadata that is no text": header(__metadata__={"a": 1}, a=entry()) + bytes(8),
    "metadata that is a list": header(__metadata__=["a"], a=entry()) + bytes(8),
    "tied to nothing": header(__metadata__={"tied.b": "c"}, a=entry()) + bytes(8),
    "NaN": (24).to_bytes(8, "little") + b'{"__metadata__":{"a":NaN}}'[:24],
}


@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
def test_hostile_tensor_files(run: Path, kind: str) -> None:
    path = save(run, 1)
    replace(path, "model.safetensors", HOSTILE_TENSORS[kind])
    with pytest.raises(DamagedError, match=r"model\.safetensors") as caught:
        read_checkpoint(path)
    assert len(caught.value.message) < 600


def test_a_pickle_is_not_opened(run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    path = save(run, 1)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        replace(path, name, pickle.dumps(Evil()))
        with pytest.raises(DamagedError):
            read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "state", [b"[" * 1_000_000, b'{"a":' * 100 + b"1" + b"}" * 100, b"NaN", b'{"a": ' + b"9" * 9999]
)
def test_hostile_state(run: Path, state: bytes) -> None:
    path = save(run, 1)
    replace(path, "state.json", state)
    with pytest.raises(DamagedError, match=r"state\.json"):
        read_checkpoint(path)


NAMES = [
    "../../../outside", "/etc/passwd", "a/../../../outside", "..", "", ".", "C:\\x", "C:x", "..\\outside",
    "\\\\host\\x", "a\0b", "\ud800", "x" * 5000, "step-00000001/../../outside",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_manifest_that_lead_out(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    path = save(run, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 6, "sha256": sha256_bytes(b"secret")}
    write_manifest(path, manifest)
    with pytest.raises(DamagedError, match="leads out of it"):
        read_checkpoint(path)
    assert newest_good(run) is None
    assert (tmp_path / "outside").read_bytes() == b"secret"


HOSTILE_MANIFESTS = [
    b"", b"null", b"[]", b"{}", b'{"sha256": 1, "files": {}}', b'{"sha256": "", "files": []}', b"\xff" * 100,
    b'{"sha256": "", "files": {"model.safetensors": 3}}', b"[" * 200_000 + b"]" * 200_000,
    b'{"sha256": "", "files": {"model.safetensors": {"bytes": "1", "sha256": ""}}}',
]  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE_MANIFESTS, ids=range(len(HOSTILE_MANIFESTS)))
def test_hostile_manifests(run: Path, data: bytes) -> None:
    path = save(run, 1)
    (path / "manifest.json").write_bytes(data)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        read_checkpoint(path)


def test_an_enormous_manifest(run: Path) -> None:
    path = save(run, 1)
    os.truncate(path / "manifest.json", 1 << 30)
    with pytest.raises(DamagedError, match=r"expected at most 67\.1 MB in .*manifest\.json, got 1\.1 GB"):
        read_checkpoint(path)


@pytest.mark.parametrize("step", [-1, "1", None, 1.5, [1]])
def test_a_manifest_whose_step_is_none(run: Path, step: object) -> None:
    path = save(run, 1)
    write_manifest(path, json.loads((path / "manifest.json").read_text()) | {"step": step})
    with pytest.raises(DamagedError, match="step"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_links_out_of_a_checkpoint(run: Path, tmp_path: Path, name: str) -> None:
    path = save(run, 1)
    (path / name).rename(tmp_path / name)
    os.symlink(tmp_path / name, path / name)
    with pytest.raises(DamagedError, match="leads out of it"):
        read_checkpoint(path)


def test_a_checkpoint_that_is_a_link_out(run: Path, tmp_path: Path, said: list[str]) -> None:
    save(run, 1)
    save(tmp_path / "other", 2).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", run / "checkpoints" / "step-00000002")
    assert content_of(read_newest(run, said.append)) == 1
    assert "leads out of it" in said[0]
    assert len(os.listdir(tmp_path / "elsewhere")) == 4  # untouched


def test_links_that_go_in_circles(run: Path) -> None:
    path = save(run, 1)
    (path / "state.json").unlink()
    os.symlink("state.json", path / "state.json")
    with pytest.raises(DamagedError):
        read_checkpoint(path)


def test_clearing_away_does_not_follow_links(run: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    for step in (1, 2):
        path = save(run, step)
    os.symlink(tmp_path / "precious", run / "checkpoints" / "step-00000001" / "more")
    os.symlink(tmp_path / "precious", run / "checkpoints" / ".step-00000009.removed")
    assert rotate(run, 1) == [1]
    assert newest_good(run) == path
    assert list_checkpoints(run) == [path]
    assert (tmp_path / "precious" / "file").exists()
    assert os.listdir(run / "checkpoints") == ["step-00000002"]
