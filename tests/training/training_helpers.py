"""A training small enough for tests, put together as a real one is."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightwell.config.run import RunConfig, changed, parse
from lightwell.data.dataset import Dataset
from lightwell.evaluation.report import Evaluation
from lightwell.runtime.device import Device
from lightwell.runtime.world import World
from lightwell.store.checkpoints import list_checkpoints, read_newest
from lightwell.store.database import RunDatabase
from lightwell.training.assemble import assemble
from lightwell.training.loop import Training, run

CPU = Device(torch.device("cpu"), torch.float32)
SIZES = {"vocab_size": 257, "context_length": 16, "emb_dim": 16, "n_heads": 2, "n_layers": 2}


@dataclass(frozen=True)
class Float64(Device):
    """The CPU in float64, for numbers that are compared to the last digits."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


def tiny(family: str = "modern", optimizer: str = "muon", steps: int = 20, **sections: Any) -> RunConfig:
    """A run's config with every size small; `sections` as in `config.run.changed`."""
    raw = {
        "model": {"family": family, **SIZES, **({"n_kv_heads": 1} if family == "modern" else {})},
        "optimizer": {"name": optimizer},
        "budget": {"steps": steps},
        "train": {"batch_size": 6},
    }
    return changed(parse(raw), **sections)


def put_together(path: Path, config: RunConfig, dataset: Dataset, **options: Any) -> Training:
    """A Training in the folder `path`, going on from its newest checkpoint if it has one."""
    checkpoint = read_newest(path) if path.exists() and list_checkpoints(path) else None
    path.mkdir(parents=True, exist_ok=True)
    database = RunDatabase(path / "run.sqlite")
    if checkpoint:
        database.delete_after(checkpoint.step)
    return assemble(path, config, dataset, CPU, World(), database, checkpoint=checkpoint, **options)


def train(path: Path, config: RunConfig, dataset: Dataset, **options: Any) -> Training:
    """Put together and run to the end."""
    training = put_together(path, config, dataset, **options)
    training_reason(training)
    return training


def training_reason(training: Training) -> str | None:
    try:
        return run(training)
    finally:
        training.record.close()
        gc.collect()


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.replicas.model.state_dict().items()}


def moments(training: Training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.optimizer.state_tensors()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics(path: Path, *names: str) -> dict[str, list[tuple[int, float]]]:
    with RunDatabase(path / "run.sqlite", read_only=True) as database:
        return {name: database.metrics(name) for name in names}


def events(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    with RunDatabase(path / "run.sqlite", read_only=True) as database:
        return database.events(kind)


def held_out(loss: float) -> Evaluation:
    """An evaluation that says so."""
    return Evaluation(loss=loss, bits_per_byte=1.0, standard_error=None, tokens=1, bytes=1)
