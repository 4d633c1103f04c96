"""A small run of its own: real steps and an evaluation, without a folder, saves or a guard.

A function of (text, config, tokens, seed), so that two such runs that differ in one thing tell what it does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from lightwell.config.run import RunConfig
from lightwell.data.batches import Batch, Batches
from lightwell.data.dataset import Dataset
from lightwell.evaluation.loss import evaluate_stream
from lightwell.evaluation.report import Evaluation
from lightwell.runtime.device import Device
from lightwell.runtime.seeds import fold
from lightwell.runtime.world import World
from lightwell.training.assemble import new_model
from lightwell.training.optimizer import Optimizer
from lightwell.training.rates import peak_rates
from lightwell.training.replicas import Replicas
from lightwell.training.schedule import lr_scale
from lightwell.training.step import train_step

WARM = 3  # steps before the speed is judged


def run_pilot(
    dataset: Dataset,
    config: RunConfig,
    tokens: int,
    device: Device,
    *,
    eval_tokens: int,
    limit: float = math.inf,
    change: Callable[[nn.Module], None] | None = None,
    before_step: Callable[[Replicas, Batch], None] | None = None,
) -> Evaluation | None:
    """Train a new model of a complete config for so many tokens, rounded up to whole steps; its held-out loss.

    None if that would take more than `limit` seconds. change: gets the model before the first step. before_step: gets
    each batch.
    """
    began = time.perf_counter()
    sizes, world, seed = config.model.complete(), World(), config.run.seed
    model = new_model(sizes, config, device, dataset)
    if change is not None:
        change(model)
    replicas = Replicas(model, world)
    optimizer = Optimizer(model, sizes, config.optimizer, peak_rates(config.optimizer, sizes), device)
    batch_size = config.train.batch_size or 1
    batches = Batches(dataset.train, batch_size, sizes.context_length, fold(seed, "data"))
    steps = steps_of(config, tokens)
    for step in range(steps):
        now = time.perf_counter()
        if step == WARM:
            warm = now
        elif step > WARM and now - began + (now - warm) / (step - WARM) * (steps - step) > limit:
            return None
        batch = batches.batch(step)
        if before_step is not None:
            before_step(replicas, batch)
        scale = lr_scale(step, steps, config.schedule)
        with torch.random.fork_rng(devices=[]):
            train_step(
                replicas, optimizer, batch, micro_batch_size=batch_size, lr_scale=scale,
                clip=config.train.clip, seed=seed, step=step, device=device, world=world,
            )  # fmt: skip
    with device.autocast():
        return evaluate_stream(model, dataset.val, dataset.tokenizer, max_tokens=eval_tokens)


def steps_of(config: RunConfig, tokens: int) -> int:
    return math.ceil(tokens / ((config.train.batch_size or 1) * config.model.complete().context_length))
