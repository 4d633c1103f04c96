"""One small training run with some parts exchanged: what the experiments of law.py and ablations.py are made of.

It uses the real step, optimizer, batches and evaluation, without checkpoints or clocks: a run is a function of
(text, config, tokens, seed), so runs that differ in one thing tell what this thing does for equal tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightwell.config.run import RunConfig, parse
from lightwell.data.batches import Batches
from lightwell.data.dataset import Dataset, open_dataset
from lightwell.data.prepare import prepare
from lightwell.evaluation.loss import evaluate_stream
from lightwell.model.count import parameters
from lightwell.runtime.device import Device, choose_device
from lightwell.runtime.seeds import fold
from lightwell.runtime.world import World
from lightwell.training.assemble import new_model
from lightwell.training.optimizer import Optimizer
from lightwell.training.rates import peak_rates
from lightwell.training.replicas import Replicas
from lightwell.training.schedule import lr_scale
from lightwell.training.step import train_step

HEADS = {64: 2, 96: 3, 128: 4, 192: 3, 256: 4, 320: 5, 384: 6, 512: 8}  # by width, as on the planner's ladder


def dataset_of(text: Path, folder: Path, vocab_size: int, val: Path | None = None) -> Dataset:
    """The text prepared in `folder`, now or earlier."""
    place = folder / f"{text.stem}-{vocab_size}"
    if not place.exists():
        prepare([text], place, tokenizer="bpe", vocab_size=vocab_size, val=[val] if val else None)
    return open_dataset(place)


def config_of(size: str, dataset: Dataset, **sections: dict[str, Any]) -> RunConfig:
    """A complete config: `sections` over the recipe. `size`: layers x width @ context, as in "4x128@64"."""
    shape, context_length = size.split("@")
    layers, width = map(int, shape.split("x"))
    model: dict[str, Any] = {
        "n_layers": layers,
        "emb_dim": width,
        "n_heads": HEADS[width],
        "context_length": int(context_length),
    }
    given = sections.get("model", {})
    if given.get("family") != "gpt2":
        model["tie_embeddings"] = False  # as the planner has it
    sections["model"] = model | {"vocab_size": dataset.tokenizer.vocab_size} | given
    sections["train"] = {"batch_size": 16} | sections.get("train", {})
    return parse(sections)


def train(
    dataset: Dataset,
    config: RunConfig,
    tokens: int,
    *,
    eval_tokens: int = 40_000,
    change: Callable[[nn.Module], None] | None = None,
    mask_documents: bool = False,
) -> dict[str, Any]:
    """Train for so many tokens and measure the held-out part. `change` gets the new model before the first step."""
    device: Device = choose_device(config.runtime.device, config.runtime.dtype)
    sizes, world, seed = config.model.complete(), World(), config.run.seed
    model = new_model(sizes, config, device, dataset)
    if change is not None:
        change(model)
    replicas = Replicas(model, world)
    optimizer = Optimizer(model, sizes, config.optimizer, peak_rates(config.optimizer, sizes), device)
    batch_size = config.train.batch_size or 1
    batches = Batches(dataset.train, batch_size, sizes.context_length, fold(seed, "data"))
    steps = math.ceil(tokens / (batch_size * sizes.context_length))
    began = time.perf_counter()
    for step in range(steps):
        batch = batches.batch(step)
        if mask_documents:
            documents = batch.documents
            replicas.forward = lambda ids, targets, documents=documents: model(ids, targets, documents=documents)
        train_step(
            replicas, optimizer, batch, micro_batch_size=batch_size, lr_scale=lr_scale(step, steps, config.schedule),
            clip=config.train.clip, seed=seed, step=step, device=device, world=world,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    with device.autocast():
        found = evaluate_stream(model, dataset.val, dataset.tokenizer, max_tokens=eval_tokens)
    return {
        "parameters": parameters(sizes)["total"],
        "tokens": steps * batch_size * sizes.context_length,
        "bits_per_byte": round(found.bits_per_byte, 4),
        "standard_error": found.standard_error,
        "seconds": round(seconds, 1),
    }


def one_thread() -> None:
    """Bits that do not depend on how many others use the machine."""
    from lightwell.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
