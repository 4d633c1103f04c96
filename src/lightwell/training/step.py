"""One training step: forward, loss, backward, clip, update. Everything before and after it is book-keeping.

    B  batch: sequences of the step in this process      T  time: context_length

The gradient is that of the mean loss over every target token of the step, over all micro-batches and processes: each
micro-batch gives a *sum* of losses, divided by the number of targets in the whole step. A mean of means would weigh
tokens of a short sequence more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightwell.data.batches import IGNORE, Batch
from lightwell.model.kernels.fused import fused
from lightwell.runtime.device import Device
from lightwell.runtime.observer import Observer
from lightwell.runtime.seeds import fold
from lightwell.runtime.world import World
from lightwell.training.optimizer import Optimizer
from lightwell.training.replicas import Replicas


@dataclass(frozen=True)
class StepResult:
    """What a step found, still on the device (`on_its_way` brings it). `loss` in nats per token."""

    loss: Tensor
    gradient_norm: Tensor
    finite: Tensor  # 0-D bool; False: the update was not applied


def train_step(
    replicas: Replicas,
    optimizer: Optimizer,
    batch: Batch,
    *,
    micro_batch_size: int,
    lr_scale: float,
    clip: float,
    seed: int,
    step: int,
    device: Device,
    world: World,
    observers: Sequence[Observer] = (),
) -> StepResult:
    """Train on one batch. A loss or a gradient that is not finite leaves the weights and moments as they were.

    batch: `ids` and `targets` (B, T), targets -100 where none counts. `seed` and `step` fix the dropout masks.
    """
    n_targets = world.sum((batch.targets != IGNORE).sum()).item()  # before the batch moves: no wait for the device
    losses = []
    parts = split(batch, micro_batch_size)
    for observer in observers:
        observer.before_forward(replicas.model, batch)
    for number, (ids, targets) in enumerate(parts):
        world.at(step, f"micro-batch {number + 1} of {len(parts)}")
        torch.manual_seed(fold(seed, "dropout", step, world.rank, number))
        with replicas.communicate(when=number == len(parts) - 1), device.autocast(), fused(not replicas.compiled):
            loss_sum, _ = replicas.forward(to(ids, device), to(targets, device))
            share = loss_sum / n_targets
            (share * world.size).backward()  # replicas average their gradients; we want the sum
        losses.append(share.detach())
    for observer in observers:
        observer.after_backward(replicas.model)
    world.at(step, "update")
    loss = world.sum(torch.stack(losses).sum())
    norm = replicas.clip_gradients(clip)
    finite = torch.isfinite(norm) & torch.isfinite(loss)  # the same on every process, since both numbers are
    optimizer.step(lr_scale, apply=finite)
    optimizer.zero_grad()
    return StepResult(loss, norm, finite)


def split(batch: Batch, micro_batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """The batch in pieces of at most `micro_batch_size` sequences."""
    return list(zip(batch.ids.split(micro_batch_size), batch.targets.split(micro_batch_size)))


def to(tensor: Tensor, device: Device) -> Tensor:
    """Move a tensor to the device; from pinned memory without waiting."""
    return tensor.to(device.torch_device, non_blocking=True)
