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
from lightwell.data.batches import Batch, Batches
from lightwell.data.dataset import Dataset, open_dataset
from lightwell.data.prepare import prepare
from lightwell.evaluation.loss import evaluate_stream
from lightwell.model.count import parameters
from lightwell.planner.choose import with_rates
from lightwell.planner.ladder import heads_of, tokens_per_step
from lightwell.runtime.device import choose_device
from lightwell.runtime.seeds import fold
from lightwell.runtime.world import World
from lightwell.training.assemble import new_model
from lightwell.training.optimizer import Optimizer
from lightwell.training.rates import peak_rates
from lightwell.training.replicas import Replicas
from lightwell.training.schedule import lr_scale
from lightwell.training.step import train_step


def dataset_of(text: Path, folder: Path, vocab_size: int, val: Path | None = None) -> Dataset:
    """The text prepared in `folder`, now or earlier."""
    place = folder / f"{text.stem}-{vocab_size}"
    if not place.exists():
        prepare([text], place, tokenizer="bpe", vocab_size=vocab_size, val=[val] if val else None)
    return open_dataset(place)


def config_of(size: str, dataset: Dataset, **sections: dict[str, Any]) -> RunConfig:
    """A complete config: `sections` over the recipe. `size`: layers x width @ context x batch, as in "4x128@64x16"; the
    batch may be left out."""
    shape, place = size.split("@")
    layers, width = map(int, shape.split("x"))
    context_length, *batch = map(int, place.split("x"))
    given = sections.get("model", {})
    model: dict[str, Any] = {
        "n_layers": layers,
        "emb_dim": width,
        "n_heads": heads_of(width, given.get("family", "modern")),
        "context_length": context_length,
    }
    if given.get("family") != "gpt2":
        model["tie_embeddings"] = False  # as the planner has it
    sections["model"] = model | {"vocab_size": dataset.tokenizer.vocab_size} | given
    sections["train"] = {"batch_size": batch[0] if batch else 16} | sections.get("train", {})
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
    device = choose_device(config.runtime.device, config.runtime.dtype)
    config = with_rates(config, tokens, len(dataset.train))

    def mask(replicas: Replicas, batch: Batch) -> None:
        model, documents = replicas.model, batch.documents
        replicas.forward = lambda ids, targets: model(ids, targets, documents=documents)

    began = time.perf_counter()
    sizes, world, seed = config.model.complete(), World(), config.run.seed
    model = new_model(sizes, config, device, dataset)
    if change is not None:
        change(model)
    replicas = Replicas(model, world)
    optimizer = Optimizer(model, sizes, config.optimizer, peak_rates(config.optimizer, sizes), device)
    batch_size = config.train.batch_size or 1
    batches = Batches(dataset.train, batch_size, sizes.context_length, fold(seed, "data"))
    steps = math.ceil(tokens / tokens_per_step(config))
    for step in range(steps):
        batch = batches.batch(step)
        if mask_documents:
            mask(replicas, batch)
        with torch.random.fork_rng(devices=[]):
            train_step(
                replicas, optimizer, batch, micro_batch_size=batch_size, clip=config.train.clip, seed=seed, step=step,
                lr_scale=lr_scale(step, steps, config.schedule), device=device, world=world,
            )  # fmt: skip
    with device.autocast():
        found = evaluate_stream(model, dataset.val, dataset.tokenizer, max_tokens=eval_tokens)
    return {
        "parameters": parameters(config.model.complete())["total"],
        "tokens": steps * tokens_per_step(config),
        "bits_per_byte": round(found.bits_per_byte, 4),
        "standard_error": found.standard_error,
        "seconds": round(time.perf_counter() - began, 1),
    }


def one_thread() -> None:
    """Bits that do not depend on how many others use the machine."""
    from lightwell.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
