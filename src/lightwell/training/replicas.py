"""The model as many processes train it: alone it is the model itself; with others, copies that share gradients (data
parallel), or each process holding a shard of every weight (fully sharded, Zhao et al. 2023).

Gradients travel only at the last micro-batch of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lightwell.runtime.world import World
from lightwell.training.sharding import is_sharded, local, part_of

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class Replicas:
    """`model` is the plain module; `forward(ids, targets)` runs it in the way that these processes need.

    kind: "data" or "sharded" ("auto": data), for several processes. compile: run the forward pass through
    torch.compile.
    """

    def __init__(self, model: nn.Module, world: World, kind: str = "auto", compile: bool = False) -> None:
        self.model = model
        self.compiled = compile
        self.kind = "alone" if world.size == 1 else "sharded" if kind == "sharded" else "data"
        self.sharded = shard(model) if self.kind == "sharded" else None  # the same model, as FSDP knows it
        self.forward: Callable[..., Any] = torch.compile(model, dynamic=False) if compile else model
        if self.kind == "data":
            self.forward = nn.parallel.DistributedDataParallel(self.forward)

    def communicate(self, when: bool) -> contextlib.AbstractContextManager[Any]:
        """A context for one forward and backward pass: gradients are shared only `when` it is the last of a step."""
        if self.kind == "data" and not when:
            return self.forward.no_sync()  # type: ignore[attr-defined]
        if self.sharded is not None:
            self.sharded.set_requires_gradient_sync(when)
        return contextlib.nullcontext()

    def clip_gradients(self, largest: float) -> Tensor:
        """Scale all gradients so that their joint norm is at most `largest` (0: leave them); their norm before."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        foreach = next(self.model.parameters()).device.type != "mps" or None  # MPS has no kernel for many at once
        norm = get_total_norm(gradients, foreach=foreach)
        if is_sharded(norm):  # each process saw its own part
            norm = norm.full_tensor()  # type: ignore[attr-defined]
        if largest > 0:
            clip_grads_with_norm_(self.model.parameters(), largest, norm, foreach=foreach)
        return norm

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight whole, one by one, so that any number of processes can go on from them; on all processes."""
        for name, tensor in self.model.state_dict().items():
            yield name, tensor.full_tensor() if is_sharded(tensor) else tensor

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the model's weights to whole ones."""
        if self.sharded is None:
            self.model.load_state_dict(weights)
            return
        self.sharded.reshard()  # whole after a forward pass without a backward one
        for name, parameter in self.model.named_parameters():  # a tied weight once
            local(parameter).copy_(part_of(weights[name].to(parameter.device), parameter))


def shard(model: nn.Module) -> FSDPModule:
    """Spread every weight over all processes, block by block; each block is gathered while it is used."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (torch.distributed.get_world_size(),))
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)
