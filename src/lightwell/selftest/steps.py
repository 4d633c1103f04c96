"""Whole training steps of both families on a device against float64 on the CPU: loss, every gradient, the update."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.config.run import OptimizerSection
from lightwell.data.batches import Batch
from lightwell.model.build import GPT
from lightwell.model.reference import forward
from lightwell.runtime.device import Device
from lightwell.runtime.observer import Observer
from lightwell.runtime.seeds import generator
from lightwell.runtime.world import World
from lightwell.selftest.operations import Row, relative_error
from lightwell.training.optimizer import Optimizer, Rates
from lightwell.training.replicas import Replicas
from lightwell.training.step import train_step

SIZES: dict[str, Any] = {"vocab_size": 97, "context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 2}
FAMILIES: dict[str, ModelConfig] = {
    "gpt2": GPTConfig(**SIZES, drop_rate=0.0),
    "modern": ModernConfig(**SIZES, n_kv_heads=2, drop_rate=0.0),
}
# Of loss and gradient, and of the update after one step. Adam divides a gradient by its own size: where that is next
# to nothing, rounding decides the sign, so updates are compared by their direction as a whole.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 8e-2, torch.float64: 1e-9}
UPDATE_TOLERANCE = {torch.float32: 2e-2, torch.bfloat16: 4e-1, torch.float64: 1e-6}


@dataclass(frozen=True)
class Float64(Device):
    """The CPU in float64."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


def check_family(name: str, device: Device, compile: bool = False) -> list[Row]:
    """Forward and backward pass, and one step of Muon and AdamW, as training would do them on this device.

    The exact side is the slow twin of the model, `model/reference.py`, in float64.
    """
    config = FAMILIES[name]
    model = GPT(config, generator(0, "selftest", name)).train()
    ids = torch.randint(97, (4, 25), generator=generator(0, "selftest tokens"))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.zeros(4, 24, dtype=torch.int64), range(4))
    exact_model = copy.deepcopy(model).double()
    loss, gradients = _exact(config, exact_model, batch)
    with_what = ", compiled" if compile else ""
    here = copy.deepcopy(model).to(device.torch_device)
    seen = _Gradients()
    result, moved = _step(here, config, batch, device, compile, seen)
    errors = [relative_error(seen.found[n], g) for n, g in gradients.items()]
    _, exact_moved = _step(exact_model, config, batch, Float64(torch.device("cpu"), torch.float64), False, _Gradients())
    update = ((moved - exact_moved).norm() / exact_moved.norm()).item()
    return [
        Row(f"{name}: loss and gradients{with_what}", abs(result - loss) / loss, max(errors), TOLERANCE[device.dtype]),
        Row(f"{name}: optimizer step{with_what}", update, None, UPDATE_TOLERANCE[device.dtype]),
    ]


def _exact(config: ModelConfig, model: torch.nn.Module, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The mean loss and its gradients by the slow twin."""
    named = dict(model.named_parameters())
    loss, count = forward(config, {**model.state_dict(keep_vars=True)}, batch.ids, batch.targets)
    mean = loss / count
    found = torch.autograd.grad(mean, list(named.values()))
    return mean.item(), dict(zip(named, found))


class _Gradients(Observer):
    """Keeps the gradients."""

    def after_backward(self, model: torch.nn.Module) -> None:
        self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _step(
    model: torch.nn.Module, config: ModelConfig, batch: Batch, device: Device, compile: bool, seen: _Gradients
) -> tuple[float, Tensor]:
    """One step; the loss, and how every weight moved (n,) float64."""
    rates = Rates(adamw=1e-3, adamw_decay=0.0, muon=1e-2)
    optimizer = Optimizer(model, config, OptimizerSection(), rates, device)
    before = _flat(model)
    result = train_step(
        Replicas(model, World(), compile=compile), optimizer, batch, micro_batch_size=2, lr_scale=1.0, clip=1.0,
        seed=0, step=0, device=device, world=World(), observers=[seen],
    )  # fmt: skip
    return float(result.loss), _flat(model) - before


def _flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().cpu().double() for p in model.parameters()])
