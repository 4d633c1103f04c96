"""Put a training together from a run's folder: the model and its optimizer, the data, the device, the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from lightwell.config.gpt import ModelConfig
from lightwell.config.run import RunConfig
from lightwell.data.batches import Batch, Batches
from lightwell.data.dataset import Dataset
from lightwell.evaluation.loss import evaluate_stream
from lightwell.evaluation.report import Evaluation
from lightwell.model.build import GPT
from lightwell.model.count import flops_per_token
from lightwell.model.init import initialise
from lightwell.runtime.device import Device
from lightwell.runtime.environment import differences, environment
from lightwell.runtime.observer import Observer
from lightwell.runtime.seeds import fold, generator
from lightwell.runtime.world import World
from lightwell.store.checkpoint import Checkpoint
from lightwell.store.database import RunDatabase
from lightwell.training.loop import Training
from lightwell.training.optimizer import Optimizer
from lightwell.training.pace import Pace
from lightwell.training.rates import peak_rates
from lightwell.training.replicas import Replicas
from lightwell.training.saver import Saver, load_checkpoint
from lightwell.training.state import TrainState
from lightwell.training.step import to

EVALUATIONS = 10  # over a run, unless the config says otherwise
EVALUATION_SHARE = 0.01  # tokens of each of them, as a share of all tokens trained on


def assemble(
    run: Path,
    config: RunConfig,
    dataset: Dataset,
    device: Device,
    world: World,
    database: RunDatabase,
    *,
    checkpoint: Checkpoint | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    observers: Sequence[Observer] = (),
    stop: Callable[[], str | None] = lambda: None,
    began: float | None = None,
    peak_flops: float | None = None,
) -> Training:
    """A Training ready to `run`. `config` has nothing left to decide but the number of steps.

    checkpoint: go on from there. weights: begin with these instead of random ones.
    """
    model_config = config.model.complete(dataset.tokenizer.vocab_size)
    model = new_model(model_config, config, device)
    if weights is not None:
        model.load_state_dict(weights)
    replicas = Replicas(model, world, config.runtime.parallel, compile=bool(config.runtime.compile))
    optimizer = Optimizer(model, model_config, config.optimizer, peak_rates(config.optimizer, model_config), device)
    batch_size = config.train.batch_size
    assert batch_size is not None, "the planner decides the batch size"
    batches = Batches(dataset.train, batch_size, model_config.context_length, fold(config.run.seed, "data"))
    state = TrainState()
    now = environment(device, world)
    if checkpoint is not None:
        load_checkpoint(checkpoint, model, optimizer, state)
        if changes := differences(checkpoint.manifest.get("environment", now), now):
            database.add_event(state.step, "environment_changed", {"changes": changes, "bit_exact": False})
    micro_batch_size = config.train.micro_batch_size or -(-batch_size // world.size)
    tokens_per_step = batch_size * model_config.context_length

    def evaluate(max_tokens: int | None) -> Evaluation:
        with device.autocast():
            return evaluate_stream(model, dataset.val, dataset.tokenizer, max_tokens=max_tokens)

    pace = Pace(config.budget, config.schedule, tokens_per_step, began=began)
    pace.step_seconds = time_a_step(
        replicas, optimizer, batches.batch(0, world.rank, world.size), micro_batch_size, device
    )
    steps = pace.expected_steps(state)
    eval_tokens = config.train.eval_tokens or max(20_000, int(EVALUATION_SHARE * steps * tokens_per_step))
    pace.reserve = reserve_seconds(pace.step_seconds / tokens_per_step, min(eval_tokens, len(dataset.val)))
    about = {"environment": now, "dataset": dataset.fingerprint}
    return Training(
        config=config,
        state=state,
        replicas=replicas,
        optimizer=optimizer,
        batches=batches,
        device=device,
        world=world,
        pace=pace,
        saver=Saver(run, model, optimizer, config.checkpoint, world, database, about, observers),
        database=database,
        evaluate=evaluate,
        eval_tokens=eval_tokens,
        micro_batch_size=micro_batch_size,
        eval_every=config.train.eval_every or max(1, -(-steps // EVALUATIONS)),
        peak_flops=peak_flops,
        flops_per_token=flops_per_token(model_config, model_config.context_length)["total"],
        observers=observers,
        stop=stop,
    )


def new_model(model_config: ModelConfig, config: RunConfig, device: Device) -> nn.Module:
    """The model with its first numbers: with Muon, blocks begin as the identity; with AdamW alone, GPT-2's own."""
    model = GPT(model_config, generator(config.run.seed, "model"))
    if config.optimizer.name == "muon":
        initialise(model, generator(config.run.seed, "model"), zero_output_projections=True)
    model.checkpoint_activations = config.runtime.checkpoint_activations
    return model.to(device.torch_device).train()


def time_a_step(
    replicas: Replicas, optimizer: Optimizer, batch: Batch, micro_batch_size: int, device: Device, rounds: int = 3
) -> float:
    """Seconds of a forward and backward pass over a batch: the fastest of some, nothing is updated.

    The update is not in it; the pace measures whole steps as soon as there are some.
    """
    fastest = float("inf")
    with torch.random.fork_rng(devices=[]):
        for _ in range(rounds):
            start = time.perf_counter()
            for ids, targets in zip(batch.ids.split(micro_batch_size), batch.targets.split(micro_batch_size)):
                with device.autocast():
                    loss_sum, _ = replicas.forward(to(ids, device), to(targets, device))
                loss_sum.backward()
            device.synchronise()
            fastest = min(fastest, time.perf_counter() - start)
            optimizer.zero_grad()
    return fastest


def reserve_seconds(seconds_per_token: float, eval_tokens: int) -> float:
    """Time to keep for what follows the last step: the last evaluation (a third of training's products), the save."""
    return 1.0 + 0.4 * seconds_per_token * eval_tokens
