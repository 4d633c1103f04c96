"""How long one step of a model takes on this machine: measured on real steps of random tokens."""

from __future__ import annotations

import time

import torch

from lightwell.config.run import RunConfig
from lightwell.model.build import GPT
from lightwell.model.count import memory_bytes
from lightwell.runtime.device import Device
from lightwell.runtime.memory import free_bytes
from lightwell.runtime.world import World
from lightwell.training.optimizer import Optimizer
from lightwell.training.rates import peak_rates
from lightwell.training.replicas import Replicas
from lightwell.training.step import train_step

TRIAL_ROWS = 4  # sequences of a trial step: the time of a batch follows from them


class _TrialBatch:
    def __init__(self, ids: torch.Tensor) -> None:
        self.ids, self.targets, self.documents = ids, ids.clone(), torch.zeros_like(ids)


def measure_step_seconds(config: RunConfig, device: Device, rounds: int = 3, limit: float = 20.0) -> float | None:
    """Seconds of one whole step, scaled up from a few sequences; None where the model is too large to try.

    The first round warms up; after `limit` seconds no further round begins.
    """
    model_config = config.model.complete()
    batch_size = config.train.batch_size or 1
    rows = min(batch_size, config.train.micro_batch_size or batch_size, TRIAL_ROWS)
    needed = memory_bytes(model_config, rows, dtype_bytes=4, optimizer=config.optimizer.name)["total"]
    free = free_bytes()
    if free is not None and needed > 0.8 * free:
        return None
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        model = GPT(model_config).to(device.torch_device).train()
        optimizer = Optimizer(model, model_config, config.optimizer, peak_rates(config.optimizer, model_config), device)
        world = World()
        ids = torch.randint(model_config.vocab_size or 1, (rows, model_config.context_length))
        times = []
        for step in range(rounds):
            start = time.perf_counter()
            train_step(
                Replicas(model, world), optimizer, _TrialBatch(ids), micro_batch_size=rows, lr_scale=0.0, clip=1.0,
                seed=0, step=step, device=device, world=world,
            )  # fmt: skip
            device.synchronise()
            times.append(time.perf_counter() - start)
            if time.perf_counter() - began > limit:
                break
    return min(times) * batch_size / rows
