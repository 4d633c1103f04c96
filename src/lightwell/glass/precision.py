"""What lower precision costs: the same step in bfloat16, float32 and float64, and each layer's gradient compared.

    print(precision_audit(model, lambda model, ids, targets: loss, ids, targets))

float64 stands for the truth. float32 is the model as it is; bfloat16 is the model as it is with its matrix products in
bfloat16 (autocast, as training does it). For each parameter, its gradient's distance from the true one over the true
one's size, and the cosine of the angle between them: a gradient may be a few percent too long and still point the right
way. The step is run on copies: the model, its gradients and the random streams stay as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightwell.errors import TraceError
from lightwell.glass.notebook import Shown
from lightwell.glass.wording import say
from lightwell.show.table import draw_table
from lightwell.show.units import json_ready, number

KINDS = ("bfloat16", "float32")
NOTHING = 1e-12  # of the whole gradient: what float64 leaves of terms that cancel, as in a softmax over one key
HURTS = 0.3  # an error of this share of the gradient: beyond rounding, its direction begins to be lost
RANDOM = 0.01  # of the loss: two runs of one step that differ by more draw random numbers


@dataclass(frozen=True)
class Layer:
    """One parameter. norm: of its true gradient. error: kind -> distance over norm. cosine: kind -> of the angle."""

    name: str
    norm: float
    error: dict[str, float]
    cosine: dict[str, float]


@dataclass(frozen=True)
class Precision(Shown):
    """The audit of one step: `loss` by kind ("float64" among them), and every parameter that has a gradient."""

    loss: dict[str, float]
    layers: list[Layer]
    language: str = "en"

    def worst(self, kind: str) -> Layer | None:
        """The layer whose gradient has the largest error."""
        return max(self.layers, key=lambda layer: _rank(layer.error[kind]), default=None)

    def hurt(self, kind: str) -> list[Layer]:
        """Layers whose gradients have lost their way, the worst first."""
        found = [layer for layer in self.layers if _rank(layer.error[kind]) > HURTS]
        return sorted(found, key=lambda layer: -_rank(layer.error[kind]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only; a number that is not finite is None."""
        layers = [asdict(layer) for layer in self.layers]
        hurt = {kind: [layer.name for layer in self.hurt(kind)] for kind in KINDS}
        return json_ready({"loss": self.loss, "layers": layers, "hurt": hurt, "text": self.draw(color=False)})

    def draw(self, color: bool = False, width: int | None = None) -> str:
        """A table of the layers, and in words whether lower precision hurts."""
        rows = [
            [layer.name, number(layer.norm, 3)]
            + [f"{number(layer.error[kind], 2)}" for kind in KINDS]
            + [f"{layer.cosine['bfloat16']:.4f}"]
            for layer in self.layers
        ]
        headers = [say(f"precision.header.{key}", self.language) for key in ("layer", "norm", *KINDS, "cosine")]
        losses = ", ".join(f"{kind} {loss:.7g}" for kind, loss in self.loss.items())
        lines = [say("precision.loss", self.language, losses=losses)]
        for kind in KINDS:
            hurt, worst = self.hurt(kind), self.worst(kind)
            values: dict[str, object] = {"kind": kind, "n": len(hurt), "of": len(self.layers)}
            if worst is not None:
                values |= {"layer": worst.name, "error": number(worst.error[kind], 2)}
                lines.append(say(f"precision.{'hurts' if hurt else 'fine'}", self.language, **values))
        return draw_table(rows, headers, "lrrrr", color=color, width=width) + "\n" + "\n".join(lines)

    def __str__(self) -> str:
        return self.draw()


def precision_audit(model: nn.Module, loss: Callable[..., Tensor], *inputs: Any, language: str = "en") -> Precision:
    """Run one step three times. `loss(model, *inputs)` gives a scalar; floating inputs are cast like the model.

    Raises TraceError for a loss that is not scalar, and for a step that draws random numbers (dropout), since other
    precisions draw others: give a model in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        first, again = (float(_scalar(loss(copy.deepcopy(model), *inputs))) for _ in range(2))
    if abs(first - again) > RANDOM * abs(first):
        raise TraceError(
            f"expected a step that gives the same loss twice, got {first:.4g} and {again:.4g}.",
            "Call model.eval() first: dropout draws other numbers in every precision.",
        )
    truth, exact = _step(model, loss, inputs, torch.float64)
    losses, gradients = {}, {}
    for kind in KINDS:
        losses[kind], gradients[kind] = _step(model, loss, inputs, torch.float32, bf16=kind == "bfloat16")
    layers = []
    whole = math.sqrt(sum(float(g.norm()) ** 2 for g in exact.values()))
    for name, g in exact.items():
        norm = float(g.norm())
        none = norm <= NOTHING * whole
        error = {
            kind: _distance(gradients[kind][name], g, torch.finfo(getattr(torch, kind)).eps * whole if none else norm)
            for kind in KINDS
        }
        cosine = {kind: _cosine(gradients[kind][name], g, norm) for kind in KINDS}
        layers.append(Layer(name, norm, error, cosine))
    return Precision({**losses, "float64": truth}, layers, language)


def _step(
    model: nn.Module, loss: Callable[..., Tensor], inputs: tuple[Any, ...], dtype: torch.dtype, bf16: bool = False
) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradient of each parameter in float64."""
    other = copy.deepcopy(model).to(dtype)
    parameters = {name: p for name, p in other.named_parameters() if p.requires_grad}
    device = next(iter(parameters.values())).device.type
    with torch.enable_grad(), torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
        value = _scalar(loss(other, *_cast(inputs, dtype)))
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return float(value.detach()), {n: g.double() for n, g in zip(parameters, gradients, strict=True) if g is not None}


def _scalar(value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise TraceError(f"expected a scalar loss, got one of shape {list(value.shape)}.", "Take its mean or sum.")
    return value


def _cast(inputs: tuple[Any, ...], dtype: torch.dtype) -> list[Any]:
    return [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]


def _distance(g: Tensor, exact: Tensor, norm: float) -> float:
    gap = float((g - exact).norm())
    return gap / norm if norm else (0.0 if gap == 0 else math.inf)


def _cosine(g: Tensor, exact: Tensor, norm: float) -> float:
    size = float(g.norm())
    return float((g * exact).sum()) / (size * norm) if size and norm else float(size == norm)


def _rank(error: float) -> float:
    """NaN is worse than anything."""
    return math.inf if math.isnan(error) else error
