"""What passes through a model in one forward pass, as statistics: outputs, slopes of activations, attention.

`watch(model)` is a context. While it is open, each call of an activation function, a softmax or fused attention is
looked at from outside (a TorchFunctionMode), and the outputs of the larger modules are measured; nothing is kept but a
few numbers, still on the device. Any PyTorch model can be watched: no class is known here, only functions.

A layer is named by the module's path and, for activations, the function: "blocks.0.mlp/gelu", then "../gelu#2" for a
second call there.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Steepest slope of each activation function: what "nearly zero" is measured by.
STEEPEST = {
    "relu": 1.0,
    "relu6": 1.0,
    "gelu": 1.13,
    "silu": 1.1,
    "mish": 1.09,
    "sigmoid": 0.25,
    "hardsigmoid": 1 / 6,
    "tanh": 1.0,
    "hardtanh": 1.0,
    "softplus": 1.0,
    "elu": 1.0,
    "selu": 1.76,
}
FLAT = 0.01  # of the steepest slope: below it a unit learns nothing worth mentioning
QUERIES = 16  # queries of the first sequence whose attention is looked at


@dataclass
class Seen:
    """What was seen: values by (layer, name), and for each activation function which of its units were not flat."""

    values: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    alive: dict[str, Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def watch(model: nn.Module) -> Iterator[Seen]:
    """See the module's docstring. `backward_rms` is filled in when backward runs, after the context has ended."""
    seen = Seen()
    mode = _Watching(seen)
    large = _large_modules(model)
    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(_entering(mode, path)))
        hooks.append(module.register_forward_hook(_leaving(mode, seen, path, path in large), always_call=True))
    try:
        with mode:
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


class _Watching(TorchFunctionMode):
    """Looks at the functions that it knows by name; `path` is the module that is running."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen
        self.path: list[str] = [""]
        self._calls: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").rstrip("_")
        if name in STEEPEST:
            _look_at_slopes(self.seen, self._numbered(f"{self.path[-1]}/{name}"), func, STEEPEST[name], args, kwargs)
        elif name == "scaled_dot_product_attention":
            _look_at_attention(self.seen, self._numbered(self.path[-1]), *args, **kwargs)
        result = func(*args, **kwargs)
        if name == "softmax" and isinstance(result, Tensor) and result.dim() >= 3:
            _note_shares(self.seen, self._numbered(f"{self.path[-1]}/softmax"), result.detach())
        return result

    def _numbered(self, layer: str) -> str:
        self._calls[layer] = self._calls.get(layer, 0) + 1
        return layer.lstrip("/") + (f"#{self._calls[layer]}" if self._calls[layer] > 1 else "")


def _entering(mode: _Watching, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        mode.path.append(path)

    return hook


def _leaving(mode: _Watching, seen: Seen, path: str, large: bool) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        mode.path.pop()
        first = output[0] if isinstance(output, tuple) and output else output
        if not large or not isinstance(first, Tensor) or not first.is_floating_point() or not first.dim():
            return
        seen.values[path, "activation_rms"] = rms(first)
        if first.requires_grad:
            first.register_hook(lambda gradient: seen.values.__setitem__((path, "backward_rms"), rms(gradient)))

    return hook


def _large_modules(model: nn.Module) -> set[str]:
    """The children of the model, the items of its lists (blocks), and the children of those."""
    found = set()
    for path, module in model.named_children():
        found.add(path)
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for number, item in module.named_children():
                found.add(f"{path}.{number}")
                found |= {f"{path}.{number}.{name}" for name, _ in item.named_children()}
    return found


def _look_at_slopes(
    seen: Seen, layer: str, func: Callable[..., Any], steepest: float, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """The local derivative at every element: of an elementwise function, the gradient of the sum of its results."""
    first = args[0] if args else kwargs.get("input")
    if not isinstance(first, Tensor) or not first.is_floating_point() or not first.numel():
        return
    # hooks of our own around what is saved here: checkpointing counts what it sees saved
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        x = first.detach().clone().requires_grad_()
        result = func(x * 1, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})  # x itself may be written
        (slope,) = torch.autograd.grad(result.sum(), x)
    steep = slope.abs() >= FLAT * steepest
    seen.values[layer, "saturated"] = 1 - steep.float().mean()
    seen.alive[layer] = steep.reshape(-1, steep.shape[-1]).any(0) if steep.dim() else steep.reshape(1)


def _look_at_attention(
    seen: Seen,
    layer: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """Scores and shares of a few queries of the first sequence, worked out again: the fused kernel hides them."""
    with torch.no_grad():
        q, k = query.detach()[:1].float(), key.detach()[:1].float()
        if enable_gqa:
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        T, S = q.shape[-2], k.shape[-2]
        first, count = min(1, T - 1), max(1, min(QUERIES, T - 1))  # the first query can see only one key
        rows = torch.linspace(first, T - 1, count, device=q.device).round().long()
        scores = q[..., rows, :] @ k.transpose(-2, -1) * (scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
        visible = torch.ones(len(rows), S, dtype=torch.bool, device=q.device)
        if is_causal:
            visible = torch.arange(S, device=q.device) <= rows[:, None]
        if attn_mask is not None:
            mask = attn_mask.expand(*query.shape[:-2], T, S)[:1][..., rows, :]
            visible = visible & mask if mask.dtype == torch.bool else visible & (mask > -math.inf)
            scores = scores if mask.dtype == torch.bool else scores + mask.float()
        scores = scores.masked_fill(~visible, -math.inf)
        seen.values[layer, "attention_score_max"] = scores.masked_fill(~visible, 0.0).abs().max()
        _note_shares(seen, layer, scores.softmax(-1))


def _note_shares(seen: Seen, layer: str, shares: Tensor) -> None:
    """Entropy of the shares (..., heads, queries, keys), as a part of what looking everywhere alike would have."""
    with torch.no_grad():
        seen_keys = (shares > 0).sum(-1).clamp(min=2)
        entropy = torch.special.entr(shares.float().nan_to_num()).sum(-1) / seen_keys.log()
        by_head = entropy.mean(-1).flatten()
        seen.values[layer, "attention_entropy"] = by_head.mean()
        seen.values[layer, "attention_entropy_lowest"] = by_head.min()


def rms(tensor: Tensor) -> Tensor:
    """Root mean square, in float32."""
    return torch.linalg.vector_norm(tensor.detach().float()) / math.sqrt(max(1, tensor.numel()))
