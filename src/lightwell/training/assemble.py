"""Put a training together from a run's folder: the model and its optimizer, the data, the device, the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lightwell.config.gpt import ModelConfig
from lightwell.config.run import RunConfig, what_decides
from lightwell.data.batches import Batch, Batches
from lightwell.data.dataset import Dataset
from lightwell.data.prefetch import Prefetch
from lightwell.errors import UserError
from lightwell.evaluation.copies import SAMPLE_TOKENS, SEARCHED
from lightwell.evaluation.loss import evaluate_stream
from lightwell.evaluation.report import Evaluation
from lightwell.model.build import GPT
from lightwell.model.count import flops_per_token, parameters
from lightwell.model.gpt2 import GPT2
from lightwell.model.init_bigram import initialise_from_pairs
from lightwell.model.init_copying import initialise_copying
from lightwell.model.kernels.build import built
from lightwell.model.kernels.fused import fused
from lightwell.model.modern import Modern
from lightwell.runtime.device import Device, is_out_of_memory
from lightwell.runtime.environment import differences, environment
from lightwell.runtime.observer import Observer
from lightwell.runtime.seeds import fold, generator
from lightwell.runtime.threads import one_thread
from lightwell.runtime.world import World
from lightwell.store.checkpoint import Checkpoint
from lightwell.training.loop import Training
from lightwell.training.memory import MICRO_BATCH
from lightwell.training.optimizer import Optimizer
from lightwell.training.outcome import outcome_tokens
from lightwell.training.pace import Pace
from lightwell.training.rates import peak_rates
from lightwell.training.record import Record
from lightwell.training.replicas import Replicas
from lightwell.training.saver import Saver, save_every
from lightwell.training.state import TrainState
from lightwell.training.step import split, to

EVALUATIONS = 10  # over a run, unless the config says otherwise
EVALUATION_SHARE = 0.005  # tokens of each of them, as a share of all tokens trained on
SLOW_DISK, SLOW_MEMORY = 2e8, 5e9  # bytes per second
COUNTED, PLACES = 4_000_000, 10_000  # tokens whose pairs are counted, and from how many places of a longer text
LONG = 2.0  # seconds, for timing steps before a run
EVALUATION_COST = 0.4  # of a step's time for each token: a third of its products, and what is not products
SEARCH_SPEED = 5e6  # bytes of training text per second, in which the sample's longest copy is looked for


def assemble(
    run: Path,
    config: RunConfig,
    dataset: Dataset,
    device: Device,
    world: World,
    record: Record,
    *,
    checkpoint: Checkpoint | None = None,
    weights: Callable[[], dict[str, torch.Tensor]] | None = None,
    extend_steps: int | None = None,
    observers: Sequence[Observer] = (),
    stop: Callable[[], str | None] = lambda: None,
    began: float | None = None,
    peak_flops: float | None = None,
    step_seconds: float | None = None,
) -> Training:
    """A Training ready to `run`. `config` has nothing left to decide but the number of steps.

    checkpoint: go on from there. weights: gives what to begin with, instead of random ones. extend_steps: add so many
    steps to a finished run. step_seconds: of one step, where that was measured already.
    Raises UserError if the batch cannot be shared equally, or the run cannot be extended.
    """
    model_config = config.model.complete(dataset.tokenizer.vocab_size)
    begun = checkpoint is not None or weights is not None
    model = new_model(model_config, config, device, None if begun else dataset, world)
    if weights is not None:
        model.load_state_dict(weights())
    replicas = Replicas(model, world, config.runtime.parallel, compile=bool(config.runtime.compile))
    optimizer = Optimizer(model, model_config, config.optimizer, peak_rates(config.optimizer, model_config), device)
    batch_size = config.train.batch_size
    assert batch_size is not None, "the planner decides the batch size"
    in_order = Batches(dataset.train, batch_size, model_config.context_length, fold(config.run.seed, "data"))
    batches = Prefetch(in_order, pin=True) if device.kind == "cuda" else in_order
    each = rows_each(batch_size, world)
    micro_batch_size = config.train.micro_batch_size or each
    tokens_per_step = batch_size * model_config.context_length

    state = TrainState()
    now = environment(device, world) | {"kernels": (built() if device.kind == "cpu" else None) or "PyTorch"}
    about = {"environment": now, "dataset": dataset.fingerprint, "tokenizer": dataset.tokenizer.hash}
    about |= {"config": what_decides(config)}
    saver = Saver(run, replicas, optimizer, config.checkpoint, world, record, about, observers)
    pace = Pace(config.budget, config.schedule, tokens_per_step, began=began, world=world)
    if checkpoint is not None:
        saver.load(checkpoint, state)
        if changes := differences(checkpoint.manifest.get("environment", now), now):
            record.add_event(state.step, "environment_changed", {"changes": changes, "bit_exact": False})
    if state.step:
        pace.step_seconds = max(state.seconds, 1e-3) / state.step
    else:
        if step_seconds is None or world.size > 1:
            first = batches.batch(0, world.rank, world.size)
            step_seconds = time_a_step(replicas, optimizer, first, micro_batch_size, device)
        pace.step_seconds = world.agree(step_seconds)
    pace.reserve = reserve_seconds(config, pace, dataset, parameters(model_config)["total"])
    pace.begin(state)
    if extend_steps is not None:
        pace.extend(state, extend_steps)
    decided = state.decided("cadence", "extended")
    if decided is None or decided["kind"] == "extended":  # a new run, or a new part of one
        more = pace.steps(state) - state.step
        decided = state.decide("cadence", **cadence(config, more, pace.step_seconds, tokens_per_step))
    saver.every = decided["save_every"]

    def evaluate(max_tokens: int | None) -> Evaluation:
        def alive(done: int, total: int | None, what: str) -> None:
            world.at(state.step, f"{what}, {done} tokens done")

        with device.autocast(), fused():
            return evaluate_stream(model, dataset.val, dataset.tokenizer, max_tokens=max_tokens, progress=alive)

    return Training(
        config=config,
        state=state,
        replicas=replicas,
        optimizer=optimizer,
        batches=batches,
        device=device,
        world=world,
        pace=pace,
        saver=saver,
        record=record,
        evaluate=evaluate,
        eval_tokens=min(decided["eval_tokens"], len(dataset.val)),
        micro_batch_size=(state.decided(MICRO_BATCH) or {"size": micro_batch_size})["size"],
        eval_every=decided["eval_every"],
        peak_flops=peak_flops,
        flops_per_token=flops_per_token(model_config, model_config.context_length)["total"],
        observers=observers,
        stop=stop,
        closing_seconds=closing_seconds(dataset, parameters(model_config)["total"]),
        recorded=len(checkpoint.state.get("decisions", ())) if checkpoint else 0,
    )


def rows_each(batch_size: int, world: World) -> int:
    """Sequences of a step in each process. Raises UserError if the batch cannot be shared equally."""
    if batch_size % world.size:
        raise UserError(
            f"expected a batch_size that {world.size} processes can share equally, got {batch_size}.",
            f"For instance: --set train.batch_size={-(-batch_size // world.size) * world.size}",
        )
    return batch_size // world.size


def cadence(config: RunConfig, steps: int, step_seconds: float, tokens_per_step: int) -> dict[str, int]:
    """How often to save and to evaluate, and on how much: decided once, so that a resumed run does the same."""
    context_length = config.model.context_length or 1
    tokens = max(4 * context_length, int(EVALUATION_SHARE * steps * tokens_per_step))
    return {
        "save_every": config.checkpoint.every or save_every(steps, step_seconds),
        "eval_every": config.train.eval_every or max(1, -(-steps // EVALUATIONS)),
        "eval_tokens": config.train.eval_tokens or tokens,
    }


def new_model(
    model_config: ModelConfig,
    config: RunConfig,
    device: Device,
    dataset: Dataset | None = None,
    world: World | None = None,
) -> GPT2 | Modern:
    """The model with its first numbers, on the device. dataset: for those that are counted in the text."""
    model = GPT(model_config, generator(config.run.seed, "model"))
    counted = dataset is not None and begins_with_pairs(model_config, config)
    if dataset is not None and counted:
        tokens = dataset.train.scattered(COUNTED, PLACES)
        with one_thread():  # it takes as long
            initialise_from_pairs(model, tokens, generator(config.run.seed, "pairs"))
            if isinstance(model, Modern):
                initialise_copying(model, tokens, generator(config.run.seed, "copying"))
    model.checkpoint_activations = config.runtime.checkpoint_activations
    model = model.to(device.torch_device).train()
    if counted and world is not None:
        for parameter in model.parameters():  # another processor's rounding may turn vectors; all must begin the same
            world.from_main(parameter.data)
    return model


def begins_with_pairs(model_config: ModelConfig, config: RunConfig) -> bool:
    """Whether the embeddings are counted: if asked for, or by rule; never where one matrix would have to be both."""
    asked = config.train.init == "bigram" or (config.train.init is None and model_config.family == "modern")
    return asked and not model_config.tie_embeddings


def time_a_step(
    replicas: Replicas, optimizer: Optimizer, batch: Batch, micro_batch_size: int, device: Device, rounds: int = 3
) -> float:
    """Seconds of a forward and backward pass over a batch: the fastest of some, nothing is updated. Of a batch that
    takes long, and is no other process's too, only the first micro-batches are made, once.

    The update is not in it; the pace measures whole steps as soon as there are some. Where the micro-batch is too large
    for a device's memory, smaller ones are timed; the step itself will find that out too.
    """
    alone = replicas.kind == "alone"
    times: list[float] = []
    with torch.random.fork_rng(devices=[]):
        while len(times) < rounds and not (alone and sum(times) > LONG):
            start, done = time.perf_counter(), 0
            try:
                for ids, targets in split(batch, micro_batch_size):
                    with device.autocast(), fused(not replicas.compiled):
                        loss_sum, _ = replicas.forward(to(ids, device), to(targets, device))
                        loss_sum.backward()
                    done += len(ids)
                    if alone and time.perf_counter() - start > LONG:
                        break
                device.synchronise()
                times.append((time.perf_counter() - start) * len(batch.ids) / done)
            except RuntimeError as error:
                if not alone or micro_batch_size == 1 or not is_out_of_memory(error):
                    raise
                micro_batch_size = -(-micro_batch_size // 2)
            optimizer.zero_grad()
    return min(times)


def reserve_seconds(config: RunConfig, pace: Pace, dataset: Dataset, n_parameters: int) -> float:
    """Time to keep for what follows the last step of a run of minutes: the last evaluations, the save, reading it back,
    a sample, which reads each weight once for each token, and whether that is copied from the text.
    """
    steps = int(60 * (config.budget.minutes or 0) / pace.step_seconds)
    tokens = min(len(dataset.val), outcome_tokens(steps, pace.tokens_per_step))
    tokens += min(len(dataset.val), cadence(config, steps, pace.step_seconds, pace.tokens_per_step)["eval_tokens"])
    return closing_seconds(dataset, n_parameters) + EVALUATION_COST * pace.step_seconds / pace.tokens_per_step * tokens


def closing_seconds(dataset: Dataset, n_parameters: int) -> float:
    """Of what follows a run's last step, all that is not an evaluation."""
    weights = 4 * n_parameters
    searched = dataset.train.n_bytes * min(1, SEARCHED / max(1, len(dataset.train)))
    return 1.0 + 2 * 3 * weights / SLOW_DISK + SAMPLE_TOKENS * weights / SLOW_MEMORY + searched / SEARCH_SPEED
