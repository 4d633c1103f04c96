"""One checkpoint: everything that a run needs to go on from a step as if it had never stopped.

    step-00000500/
        model.safetensors        the weights
        optimizer.safetensors    the optimizer's tensors, e.g. AdamW's two moments per weight
        state.json               everything else that training remembers: counters, decisions
        manifest.json            step, size and SHA-256 of each file above, and a hash of all that

Writing: into a temporary folder beside the final one; every file synced to the disk, the manifest last; then one
rename. So a folder with the final name is complete, whenever the power fails. (`files/atomic.py` does it.)

Reading: nothing is believed. The manifest is compared with its own hash, each file with its size, each byte with its
SHA-256 while it is loaded. What differs is refused by name; finding another checkpoint is `checkpoints.py`'s work.

Two things are never written: weights with a number that is not finite, for a checkpoint that cannot be trained from is
worse than none; and pickles, which execute code when read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightwell.errors import DamagedError, NotFiniteError, RunError
from lightwell.files.atomic import json_bytes, write_folder, write_manifest, write_new
from lightwell.files.hashing import sha256_bytes
from lightwell.files.limits import parse_json
from lightwell.files.space import require_space
from lightwell.files.translate import os_errors
from lightwell.files.verify import read_manifest, reading, verify_digest, verify_size
from lightwell.store.tensors import n_bytes, read_tensors, write_tensors

FORMAT = 1
SERIAL = 1 << 14  # elements that PyTorch goes through without further threads (its grain is 1 << 15)
FOLDER = "checkpoints"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
# What to do about numbers that have gone bad; to go on with the same settings would make them so again.
BEGIN_AGAIN = "Begin anew with other settings, for one a lower rate: --set optimizer.learning_rate=..."
PIN = "pinned"  # an empty file in the folder of a checkpoint that is to be kept for ever; see `checkpoints.pin`


@dataclass(frozen=True)
class Checkpoint:
    """What `read_checkpoint` found. Tensors are new, on the CPU; tied ones are the same object."""

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    manifest: dict[str, Any]


def write_checkpoint(
    run: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Save a checkpoint of `run` after `step` steps, durably, and return its folder.

    `state` must be JSON without NaN (ValueError otherwise). `about` goes into the manifest, for people and listings:
    tokens seen, the environment. An earlier checkpoint of the same step is replaced (its pin stays); if that is
    interrupted, the next process finds the earlier one or the new one.
    Raises RunError if a number in `model` or `optimizer` is not finite, SpaceError if the disk has no room.
    """
    require_finite(model)
    require_finite(optimizer)
    remembered = json_bytes(dict(state))
    path = checkpoint_path(run, step)
    require_space(path, n_bytes(model) + n_bytes(optimizer) + len(remembered))
    with write_folder(path, replace=True) as folder:
        known = {
            MODEL: write_tensors(folder / MODEL, model),
            OPTIMIZER: write_tensors(folder / OPTIMIZER, optimizer),
        }
        write_new(folder / STATE, remembered)
        write_manifest(folder, {"format": FORMAT, "kind": "checkpoint", "step": step, **(about or {})}, known)
        if (path / PIN).exists():
            write_new(folder / PIN, b"")
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint, every byte verified.

    Raises DamagedError naming the file that is not as written, RunError for a format that this version does not know.
    """
    manifest = checkpoint_manifest(path)
    with os_errors(f"read {path}"):
        return Checkpoint(
            path=path,
            step=manifest["step"],
            model=_read_tensors(path, manifest, MODEL),
            optimizer=_read_tensors(path, manifest, OPTIMIZER),
            state=_read_state(path, manifest),
            manifest=manifest,
        )


def load_model_only(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, verified; the optimizer's file is not even opened. Errors as `read_checkpoint`."""
    with os_errors(f"read {path}"):
        return _read_tensors(path, checkpoint_manifest(path), MODEL)


def checkpoint_manifest(path: Path) -> dict[str, Any]:
    """The verified manifest of a checkpoint of the format we know. The other files are not opened."""
    manifest = read_manifest(path)
    if manifest.get("kind") != "checkpoint":
        raise RunError(
            f"expected a checkpoint in {path}, got another kind of folder.", "Checkpoints are in RUN/checkpoints."
        )
    if manifest.get("format") != FORMAT:
        raise RunError(
            f"expected a checkpoint of format {FORMAT}, got format {manifest.get('format')!r} in {path}.",
            "It was written by another version of Lightwell: use that one.",
        )
    step = manifest.get("step")
    if type(step) is not int or step < 0:
        raise DamagedError(f"expected a number as the step in {path}, got {step!r}.")
    return manifest


def checkpoint_path(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise RunError, naming the first tensor that holds a NaN or an infinity.

    Piece by piece, on the thread that asks: for a large tensor PyTorch would start threads beside those that train, and
    OpenMP, with more threads than processors, lets none of them spin any longer (LOG.md: all later steps are slower).
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        for piece in tensor.detach().reshape(-1).split(SERIAL):
            low, high = torch.aminmax(piece)  # a NaN anywhere makes both NaN; unlike isfinite, needs no memory
            if torch.isfinite(low) and torch.isfinite(high):
                continue
            raise NotFiniteError(f"expected finite numbers to save, got NaN or infinity in {name}.", BEGIN_AGAIN)


def _read_tensors(folder: Path, manifest: dict[str, Any], name: str) -> dict[str, Tensor]:
    path = verify_size(folder, manifest, name)
    with reading(path):
        tensors, digest = read_tensors(path)
    verify_digest(path, manifest["files"][name]["sha256"], digest)
    return tensors


def _read_state(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    path = verify_size(folder, manifest, STATE)
    with reading(path):
        data = path.read_bytes()
    verify_digest(path, manifest["files"][STATE]["sha256"], sha256_bytes(data))
    return parse_json(data, str(path))
