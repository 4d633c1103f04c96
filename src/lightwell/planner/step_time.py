"""How long one step of a model takes on this machine: measured on real steps of random tokens."""

from __future__ import annotations

import math
import statistics
import time
from typing import NamedTuple

import torch

from lightwell.config.run import RunConfig
from lightwell.data.batches import Batch
from lightwell.model.build import GPT
from lightwell.model.count import flops_per_token
from lightwell.planner.fit import rows_at_once, step_memory
from lightwell.runtime.device import Device, is_out_of_memory
from lightwell.runtime.memory import free_bytes
from lightwell.runtime.seeds import generator
from lightwell.runtime.world import World
from lightwell.training.optimizer import Optimizer
from lightwell.training.rates import peak_rates
from lightwell.training.replicas import Replicas
from lightwell.training.step import train_step

TRIAL_FLOPS = 2e11  # of a first trial step on a CPU: a second on a laptop
FEW = 2  # rounds of a batch that is tried in part, after one that warms up
LEAST_TURNS, TURNS = 2, 6  # steps of each model that is timed beside others, after one that warms up


class Parts(NamedTuple):
    """Seconds until the first micro-batch was done, compiling included, and of a whole step."""

    warm: float
    step: float


class Trial:
    """A model of a complete config to step on random tokens: `rows` sequences of `length` tokens (None: the context),
    all or `at_once` together."""

    def __init__(
        self,
        config: RunConfig,
        device: Device,
        rows: int,
        at_once: int | None = None,
        length: int | None = None,
        compile: bool = False,
    ) -> None:
        model_config = config.model.complete()
        model = GPT(model_config, generator(0, "trial")).to(device.torch_device).train()
        model.checkpoint_activations = config.runtime.checkpoint_activations
        T = length or model_config.context_length
        ids = torch.randint(model_config.vocab_size or 1, (rows, T), generator=generator(0, "trial tokens"))
        self.batch = Batch(ids, ids.clone(), torch.zeros_like(ids), range(rows))
        self.tokens, self.at_once = rows * T, at_once or rows
        self.device, self.config = device, config
        self.replicas = Replicas(model, World(), compile=compile)
        self.optimizer = Optimizer(
            model, model_config, config.optimizer, peak_rates(config.optimizer, model_config), device
        )

    def step(self, rows: int | None = None) -> float:
        """One whole training step, or one of its first `rows` alone; its seconds. The weights do not move: the rate is
        0."""
        b = self.batch
        batch = b if rows is None else Batch(b.ids[:rows], b.targets[:rows], b.documents[:rows], b.rows[:rows])
        start = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            train_step(
                self.replicas, self.optimizer, batch, micro_batch_size=self.at_once, lr_scale=0.0,
                clip=self.config.train.clip, seed=0, step=0, device=self.device, world=World(),
            )  # fmt: skip
        self.device.synchronise()
        return time.perf_counter() - start


def measure_step_seconds(config: RunConfig, device: Device, rounds: int = 5, limit: float = 20.0) -> float | None:
    """Seconds of one whole step; None where the model is too large to try.

    On a CPU a batch that would take long is tried in part first; then whole if it fits into the free memory and will be
    done within `limit` seconds; if not, a step's time is a line over its tokens, drawn through two numbers of them.
    Elsewhere one micro-batch is tried, and two where there are more. A trial is a round that warms up and, if that was
    done within `limit` seconds, at least one more; after them no further round begins.
    """
    began = time.perf_counter()
    model_config = config.model.complete()
    batch_size = config.train.batch_size or 1
    at_once = rows_at_once(config)
    if device.kind != "cpu":
        try:
            return step_of_parts(config, device, rounds, limit).step
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        device.empty_cache()  # outside of `except`, whose traceback holds on to the trial
        return None
    T = model_config.context_length
    per_row = T * flops_per_token(model_config, T)["total"]
    rows = min(at_once, max(1, int(TRIAL_FLOPS / per_row)))
    length = max(1, min(T, int(T * TRIAL_FLOPS / per_row)))
    free = free_bytes()

    def fits(rows: int) -> bool:
        return free is None or step_memory(config, rows, device)["total"] <= 0.8 * free

    if not fits(rows):
        return None
    tokens, tried = batch_size * T, rows * length
    if tried == tokens:
        return _usual(config, device, rows, rounds, limit)
    seconds = _usual(config, device, rows, FEW, limit, length)
    left = limit - (time.perf_counter() - began)
    has_room = free is not None and at_once == batch_size and fits(batch_size)
    if has_room and (1 + FEW) * seconds * tokens / tried < left:
        return _usual(config, device, batch_size, rounds, left)
    # Of a single sequence, half: Muon takes as long for one as for all of them.
    fewer, length = (rows // 2, length) if rows > 1 else (1, max(1, length // 2))
    less = fewer * length
    each = (seconds - _usual(config, device, fewer, FEW, left, length)) / (tried - less) if less < tried else seconds
    return seconds + max(each, 0.25 * seconds / tried) * (tokens - tried)


def _usual(config: RunConfig, device: Device, rows: int, rounds: int, limit: float, length: int | None = None) -> float:
    """Seconds of a step with so many sequences, the median of some: a run has bad moments too."""
    began = time.perf_counter()
    trial = Trial(config, device, rows, length=length)
    times = [trial.step()]
    while len(times) <= rounds and (time.perf_counter() - began < limit or (len(times) < 2 and times[0] < limit)):
        times.append(trial.step())
    return statistics.median(times[1:] or times)


def step_of_parts(config: RunConfig, device: Device, rounds: int, limit: float, compile: bool = False) -> Parts:
    """A step in micro-batches, timed with one of them and with two: what is done once a step counts once."""
    at_once = rows_at_once(config)
    n_parts = (config.train.batch_size or 1) / at_once
    began = time.perf_counter()
    trial = Trial(config, device, at_once * min(2, math.ceil(n_parts)), at_once, compile=compile)
    trial.step(at_once)
    warm = time.perf_counter() - began

    def usual(rows: int) -> float:
        trial.step(rows)
        start, times = time.perf_counter(), [trial.step(rows)]
        while len(times) < rounds and time.perf_counter() - start < limit:
            times.append(trial.step(rows))
        return statistics.median(times)

    one = usual(at_once)
    more = max(usual(2 * at_once) - one, 0.25 * one) if n_parts > 1 else 0.0
    return Parts(warm, one + (n_parts - 1) * more)


def in_turns(config: RunConfig, device: Device) -> bool:
    """Whether steps are timed beside those of other models: on CPUs, of whole batches. GPUs are steady."""
    return device.kind == "cpu" and not config.train.micro_batch_size


def measure_in_turns(
    configs: list[RunConfig], device: Device, expected: list[float], limit: float = 20.0
) -> list[float] | None:
    """Seconds of one whole step of each, made in turns: what slows a machine for a moment slows all of them, and which
    one is the faster for its size can be told. `expected`: about how many.

    None where they do not fit into the free memory together, take more than `limit` seconds, or are not made whole.
    """
    began, free = time.perf_counter(), free_bytes()
    rows = [config.train.batch_size or 1 for config in configs]
    needed = sum(step_memory(config, n, device)["total"] for config, n in zip(configs, rows))
    fits = free is None or needed <= 0.8 * free
    has_time = (1 + LEAST_TURNS) * sum(expected) <= limit
    if not (fits and has_time and all(in_turns(config, device) for config in configs)):
        return None
    trials = [Trial(config, device, n) for config, n in zip(configs, rows)]
    rounds: list[list[float]] = []
    while len(rounds) <= LEAST_TURNS or (len(rounds) <= TURNS and time.perf_counter() - began < limit):
        rounds.append([trial.step() for trial in trials])
    return [statistics.median(times) for times in zip(*rounds[1:])]
