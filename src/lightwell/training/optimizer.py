"""Which update each parameter gets: Muon for the matrices inside the blocks, AdamW for all else; or AdamW alone.

Each has its file: muon.py, adamw.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lightwell.config.gpt import ModelConfig
from lightwell.config.run import OptimizerSection
from lightwell.model.count import qkv_rows
from lightwell.runtime.device import Device
from lightwell.training.adamw import AdamW
from lightwell.training.muon import Muon
from lightwell.training.sharding import local, part_of, whole


@dataclass(frozen=True)
class Rates:
    """Peak learning rates and weight decays, decided: `adamw` per optimizer step, `muon` in units of its update.

    beta1: AdamW's momentum.
    """

    adamw: float
    adamw_decay: float
    beta1: float = 0.9
    muon: float = 0.0
    muon_decay: float = 0.0


class Optimizer:
    """Both updates behind one `step`. `model`'s parameters are told apart by name and shape.

    updating: an update has begun and not ended; if an error came between, the weights are neither old nor new.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, section: OptimizerSection, rates: Rates, device: Device):
        self.rates, self.updating = rates, False
        self.names = dict(model.named_parameters())  # a tied weight once
        self.here = {name: local(p) for name, p in self.names.items()}  # this process's rows, if sharded
        hidden = {name for name, p in self.names.items() if section.name == "muon" and is_hidden_matrix(name, p)}
        self.muon = Muon(
            {name: self.names[name] for name in sorted(hidden)},
            {name: qkv_rows(config) for name in hidden if name.endswith("attn.qkv.weight")},
            section.momentum,
            device.dtype,
        )
        self.adamw = AdamW(
            [p for name, p in self.here.items() if name not in hidden], (rates.beta1, section.beta2), section.eps
        )

    def step(self, lr_scale: float, apply: Tensor) -> None:
        """Update every parameter from its `.grad`. Where `apply` (0-D bool, on the device) is False nothing changes:
        neither weights nor moments, and no one waits for the device to find out."""
        for name, p in self.names.items():
            self.here[name].grad = None if p.grad is None else local(p.grad)
        self.updating = True
        self.adamw.step(self.rates.adamw * lr_scale, self.rates.adamw_decay, apply)
        self.muon.step(self.rates.muon * lr_scale, self.rates.muon_decay, apply)
        self.updating = False

    def zero_grad(self) -> None:
        for tensors in (self.names, self.here):
            for tensor in tensors.values():
                tensor.grad = None

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything the next step depends on, by name: "muon.<parameter>", "exp_avg.<parameter>" and so on.

        Sharded ones are gathered one by one, which takes all processes.
        """
        for name, buffer in self.muon.buffers.items():
            yield f"muon.{name}", whole(buffer, self.names[name])
        for name, p in self.here.items():
            for key, value in self.adamw.moments.get(p, {}).items():
                yield f"{key}.{name}", whole(value, self.names[name])

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `state_tensors`: what was there before is forgotten. Raises KeyError for a name that is not ours."""
        self.adamw.moments.clear()
        for full_name, tensor in tensors.items():
            key, _, name = full_name.partition(".")
            part = part_of(tensor.to(self.here[name].device), self.names[name])
            if key == "muon":
                self.muon.buffers[name].copy_(part)
            else:  # the count of steps is one float32 number, the rest is shaped like the parameter
                self.adamw.moments.setdefault(self.here[name], {})[key] = part.clone()


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Matrices inside the blocks: not the embeddings, not the head."""
    return name.startswith("blocks.") and parameter.ndim == 2
