"""One checkpoint: what is written is what is read, whatever the tensors are; nothing else is ever accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from store_helpers import content_of, flip, save, tensors_of

from lightwell.errors import DamagedError, RunError, SpaceError
from lightwell.files import space
from lightwell.files.hashing import sha256_file
from lightwell.store.checkpoint import load_model_only, read_checkpoint, write_checkpoint
from lightwell.store.tensors import n_bytes, read_tensors, tied_names, write_tensors

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def test_round_trip(run: Path) -> None:
    path = save(run, 500)
    assert path == run / "checkpoints" / "step-00000500"
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.step, checkpoint.path, content_of(checkpoint)) == (500, path, 500)
    assert checkpoint.manifest["tokens"] == 3500
    assert load_model_only(path).keys() == checkpoint.model.keys()


def test_tied_tensors_are_written_once_and_tied_again(run: Path) -> None:
    checkpoint = read_checkpoint(save(run, 1))
    assert checkpoint.model["head.weight"] is checkpoint.model["tok_emb.weight"]
    assert set(load_file(checkpoint.path / "model.safetensors")) == {"tok_emb.weight", "norm.weight"}


def test_views_of_one_block_are_not_tied() -> None:
    block = torch.randn(4, 4)
    tensors = {"a": block, "b": block.t(), "c": block[:2], "d": block.view(16), "e": block, "f": torch.empty(0)}
    assert tied_names(tensors) == {"e": "a"}
    assert n_bytes(tensors) == 4 * (16 + 16 + 8 + 16)


@st.composite
def named_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    tensors = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=8).filter(is_free), unique=True, max_size=6)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        dtype = draw(st.sampled_from(DTYPES))
        data = draw(st.binary(min_size=(n := torch.Size(shape).numel() * dtype.itemsize), max_size=n))
        plain = torch.tensor(list(data), dtype=torch.uint8)
        if dtype == torch.bool:
            plain &= 1
        tensors[name] = plain.view(dtype).view(shape) if n else torch.empty(shape, dtype=dtype)
    return tensors


def is_free(name: str) -> bool:
    return name != "__metadata__" and name.isprintable()  # isprintable: no lone surrogates


@settings(max_examples=50, deadline=None)
@given(named_tensors())
def test_any_tensors_round_trip_and_the_library_agrees(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "t.safetensors"
    size, digest = write_tensors(path, tensors)
    assert (size, digest) == (path.stat().st_size, sha256_file(path))
    ours, digest_read = read_tensors(path)
    assert digest_read == digest
    with safe_open(path, "pt") as file:
        theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is not a dictionary)
    for read in (ours, theirs):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
            assert bits(read[name]) == bits(tensor)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3), "a": torch.randn(2, 2, dtype=torch.bfloat16), "c": torch.tensor([True])}
    save_file(tensors, tmp_path / "t", metadata={"format": "pt"})
    read, _ = read_tensors(tmp_path / "t")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_tensors_in_pieces_and_elsewhere(tmp_path: Path) -> None:
    base = torch.randn(6, 4, requires_grad=True)
    tensors = {"turned": base.t(), "steps": base[::2, 1:], "grown": torch.randn(1).expand(5), "whole": base}
    write_tensors(tmp_path / "t", tensors)
    read, _ = read_tensors(tmp_path / "t")
    assert all(torch.equal(read[name], tensors[name]) and not read[name].requires_grad for name in tensors)


def test_every_tensor_is_aligned_as_the_allocator_aligns(run: Path) -> None:
    """Kernels may add up in another order at odd addresses: a resumed run would then differ in the last bit."""
    odd = {f"w{i}": torch.zeros(i) for i in range(1, 9)}
    read = read_checkpoint(write_checkpoint(run, 1, odd, {}, {})).model
    assert [tensor.data_ptr() % 64 for tensor in read.values()] == [0] * 8


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_numbers_that_are_not_finite_are_never_saved(run: Path, value: float, part: str) -> None:
    model, optimizer = tensors_of(1)
    bad = {"model": model, "optimizer": optimizer}[part]
    name = next(iter(bad))
    bad[name][0, 1] = value
    with pytest.raises(RunError, match=rf"expected finite numbers to save, got NaN or infinity in {name}\."):
        write_checkpoint(run, 1, model, optimizer, {})
    assert not run.exists()


def test_state_that_is_not_json_is_a_bug_found_before_anything_is_written(run: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_checkpoint(run, 1, {}, {}, {"loss": float("nan")})
    with pytest.raises(TypeError, match="JSON"):
        write_checkpoint(run, 1, {}, {}, {"loss": torch.tensor(1.0)})
    assert not run.exists()


def test_no_room_is_said_before_anything_is_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = space.shutil._ntuple_diskusage(100 << 20, 90 << 20, 10 << 20)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SpaceError, match=r"of free space for .*step-00000001, got 10\.5 MB"):
        save(run, 1)
    assert not run.exists()


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_noticed(run: Path, name: str) -> None:
    path = save(run, 1)
    good = (path / name).read_bytes()
    for at in range(len(good)):
        flip(path / name, at)
        with pytest.raises((DamagedError, RunError)) as caught:
            read_checkpoint(path)
        assert name in caught.value.message
        (path / name).write_bytes(good)
    assert read_checkpoint(path).step == 1


@pytest.mark.parametrize("name", FILES)
def test_truncated_longer_and_missing_files_are_named(run: Path, name: str) -> None:
    path = save(run, 1)
    good = (path / name).read_bytes()
    for data in (b"", good[:7], good[:-2], good + b"\0", None):
        (path / name).unlink() if data is None else (path / name).write_bytes(data)
        with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
            read_checkpoint(path)
    if name == "model.safetensors":
        with pytest.raises(DamagedError, match="model"):
            load_model_only(path)


def test_weights_alone_need_no_optimizer(run: Path) -> None:
    path = save(run, 1)
    (path / "optimizer.safetensors").unlink()
    assert set(load_model_only(path)) == set(tensors_of(1)[0])


@pytest.mark.parametrize("changed", [{"format": 2}, {"format": "x"}, {"format": None}])
def test_an_unknown_format_is_refused_by_name(run: Path, changed: dict) -> None:
    path = save(run, 1)
    rewrite_manifest(path, changed)
    with pytest.raises(RunError, match=f"got format {changed['format']!r}") as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, DamagedError)


def test_another_kind_of_folder_is_not_a_checkpoint(run: Path) -> None:
    path = save(run, 1)
    rewrite_manifest(path, {"kind": "dataset"})
    with pytest.raises(RunError, match="got another kind of folder"):
        read_checkpoint(path)


def rewrite_manifest(path: Path, changes: dict) -> None:
    """Change a manifest as a program would that writes another format: its own hash fits."""
    from lightwell.files.hashing import sha256_json

    manifest = json.loads((path / "manifest.json").read_text()) | changes
    del manifest["sha256"]
    (path / "manifest.json").write_text(json.dumps(manifest | {"sha256": sha256_json(manifest)}))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_looking_for_numbers_that_are_not_finite_starts_no_threads() -> None:
    """A second pool beside the one that trains would slow it down for as long as the saving thread lives."""
    code = (
        "import os, threading, torch\n"
        "from lightwell.store.checkpoint import require_finite\n"
        "torch.set_num_threads(2)\n"
        "weights = {'a': torch.zeros(1_000_000)}\n"
        "weights['a'].add_(1)\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count()\n"
        "def look():\n"
        "    require_finite(weights)\n"
        "    print(count() - before)\n"
        "thread = threading.Thread(target=look)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"  # the thread itself
