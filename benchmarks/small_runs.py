"""One small training run with some parts exchanged: what the experiments of law.py and ablations.py are made of.

It uses the real step, optimizer, batches and evaluation, without checkpoints or clocks: a run is a function of
(text, config, tokens, seed), so runs that differ in one thing tell what this thing does for equal tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightwell.config.run import RunConfig, parse
from lightwell.data.batches import Batch
from lightwell.data.dataset import Dataset, open_dataset
from lightwell.data.prepare import prepare
from lightwell.model.count import parameters
from lightwell.planner.choose import with_rates
from lightwell.planner.ladder import heads_of, tokens_per_step
from lightwell.runtime.device import choose_device
from lightwell.training.pilot import run_pilot, steps_of
from lightwell.training.replicas import Replicas


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
    found = run_pilot(
        dataset, config, tokens, device, eval_tokens=eval_tokens, change=change,
        before_step=mask if mask_documents else None,
    )  # fmt: skip
    assert found is not None, "no limit was set"
    return {
        "parameters": parameters(config.model.complete())["total"],
        "tokens": steps_of(config, tokens) * tokens_per_step(config),
        "bits_per_byte": round(found.bits_per_byte, 4),
        "standard_error": found.standard_error,
        "seconds": round(time.perf_counter() - began, 1),
    }


def one_thread() -> None:
    """Bits that do not depend on how many others use the machine."""
    from lightwell.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
