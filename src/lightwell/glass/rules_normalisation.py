"""Rules of normalisations over a batch, over groups of channels, and by the root mean square alone.

All are one idea, as layer norm in the front door: h = (x - mean) / deviation over some set of elements, then scale and
shift. RMSNorm leaves out the mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightwell.glass.call import Call, Path
from lightwell.glass.index_map import Index, box, last_dims
from lightwell.glass.rule import rule


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(1, -1, *[1] * (x.dim() - 2))


def _normalised(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor]:
    """(h, r): x moved and scaled to mean 0 and variance 1 over `dims`, and the factor r that it was scaled by."""
    centred = x - x.mean(dims, keepdim=True)
    r = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    return centred * r, r


def _through(dh: Tensor, h: Tensor, r: Tensor, dims: list[int]) -> Tensor:
    """The gradient of x from that of h: what moves the mean or the deviation is taken off."""
    return r * (dh - dh.mean(dims, keepdim=True) - h * (dh * h).mean(dims, keepdim=True))


def _own_channel(call: Call, out: Index) -> dict[Path, Tensor]:
    found = {}
    for path, value in call.float_inputs().items():
        if path == call.path("input"):
            own = [None, out[1], *[None] * (value.dim() - 2)] if _trains(call) else list(out)
            found[path] = box(value, own)
        elif path in (call.path("weight"), call.path("bias")):
            found[path] = torch.tensor([[out[1]]])
    return found


_FORMULA = (
    "dz[n,c]/dx[m,d] = [c=d] * w[c] * z2[c]"
    " * ([n=m] - (1 + (x[n,c] - z1[c]) * (x[m,c] - z1[c]) * z2[c]**2) / size(x, 0));"
    " dz[n,c]/dw[d] = [c=d] * (x[n,c] - z1[c]) * z2[c]; dz[n,c]/db[d] = [c=d]"
)


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    formula=_FORMULA,
    reads=_own_channel,
)
def batch_norm(dz, x, w, b, *, call, running_mean=None, running_var=None):
    named = call.named()
    eps = named["eps"] if "eps" in named else named["epsilon"]
    dims = [0, *range(2, x.dim())]
    dh = dz if w is None else dz * _per_channel(w, x)
    if _trains(call):
        h, r = _normalised(x, dims, eps)
        return _through(dh, h, r, dims), (dz * h).sum(dims), dz.sum(dims)
    r = _per_channel((running_var + eps).rsqrt(), x)
    h = (x - _per_channel(running_mean, x)) * r
    return dh * r, (dz * h).sum(dims), dz.sum(dims)


def _trains(call: Call) -> bool:
    return call.named().get(
        "training", call.name not in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
    )


@rule(
    "native_group_norm",
    formula="dz[c,i]/dx[d,j] = w[c] * z2[0] * ([c=d and i=j] - (1 + (x[c,i] - z1[0]) * (x[d,j] - z1[0]) * z2[0]**2)"
    " / (size(x, 1) * size(x, 2))); dz[c,i]/dw[d] = [c=d] * (x[c,i] - z1[0]) * z2[0]; dz[c,i]/db[d] = [c=d]",
    reads=lambda call, out: _own_group(call, out),
)
def group_norm(dzs, x, w, b, *, group, eps):
    grouped = x.unflatten(1, (group, -1)).flatten(2)
    h, r = _normalised(grouped, [2], eps)
    dims = [0, *range(2, x.dim())]
    dz = torch.zeros_like(x) if dzs[0] is None else dzs[0]
    dh = dz if w is None else dz * _per_channel(w, x)
    dx = _through(dh.reshape(grouped.shape), h, r, [2])
    if dzs[1] is not None:  # somebody uses the mean
        dx = dx + dzs[1].unsqueeze(2) / h.shape[2]
    if dzs[2] is not None:  # somebody uses the reciprocal deviation r: dr/dx = -r^2 h / n
        dx = dx - dzs[2].unsqueeze(2) * r * r * h / h.shape[2]
    return dx.reshape(x.shape), (dz * h.reshape(x.shape)).sum(dims), dz.sum(dims)


def _own_group(call: Call, out: Index) -> dict[Path, Tensor]:
    (path, x), *parameters = call.float_inputs().items()
    size = x.shape[1] // call.named()["group"]
    row = box(x, [out[0], *[None] * (x.dim() - 1)])
    found = {path: row[row[:, 1] // size == out[1] // size]}
    return found | {p: torch.tensor([[out[1]]]) for p, _ in parameters}


@rule(
    "_fused_rms_norm",
    formula="dz[i]/dx[j] = w[i] * z1[0] * ([i=j] - x[i] * x[j] * z1[0]**2 / len(x));"
    " dz[i]/dw[j] = [i=j] * x[i] * z1[0]",
    reads=last_dims("normalized_shape"),
)
def rms_norm(dzs, x, w, *, normalized_shape, eps=None):
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    r = (x.square().mean(dims, keepdim=True) + eps).rsqrt()
    h = x * r
    dz = torch.zeros_like(x) if dzs[0] is None else dzs[0]
    dh = dz if w is None else dz * w
    dx = r * (dh - h * (dh * h).mean(dims, keepdim=True))
    if dzs[1] is not None:  # somebody uses r: dr/dx = -r^2 h / n
        dx = dx - dzs[1] * r * r * h / math.prod(normalized_shape)
    return dx, dz * h
