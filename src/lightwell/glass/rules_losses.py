"""Rules of losses that compare with a target: each slope is that of one element's loss, times 1/n for an average.

The option `reduction` is PyTorch's number for it: 0 leaves each element its loss, 1 averages, 2 adds up.
"""

from __future__ import annotations

import torch

from lightwell.glass.call import Call, Path
from lightwell.glass.index_map import Index, elementwise, everything
from lightwell.glass.rule import linear, rule

_SHARE = "([reduction != 1] + [reduction = 1] / len(x))"


def _compared(call: Call, out: Index) -> dict[Path, torch.Tensor]:
    """One element's own loss, or all of them."""
    return (elementwise if call.named()["reduction"] == 0 else everything)(call, out)


def _shared(dz, x, reduction):
    """What reaches one element's loss: its own upstream gradient, or an equal part of the average's."""
    return dz / x.numel() if reduction == 1 else dz


@rule(
    "mse_loss",
    formula=f"dz/dx[i] = 2 * (x[i] - y[i]) * {_SHARE}; dz/dy[i] = 2 * (y[i] - x[i]) * {_SHARE}",
    reads=_compared,
)
def mse_loss(dz, x, y, *, reduction=1):
    gradient = 2 * (x - y)
    gradient = gradient * _shared(dz, gradient, reduction)
    return gradient, -gradient


@rule(
    "smooth_l1_loss",
    formula=f"dz/dx[i] = d * {_SHARE} with d = min(max((x[i] - y[i]) / beta, -1), 1);"
    f" dz/dy[i] = -d * {_SHARE} with d = min(max((x[i] - y[i]) / beta, -1), 1)",
    reads=_compared,
)
def smooth_l1_loss(dz, x, y, *, reduction=1, beta=1.0):
    difference = x - y
    slope = difference.sign() if beta == 0 else (difference / beta).clamp(-1, 1)
    gradient = slope * _shared(dz, difference, reduction)
    return gradient, -gradient


@rule(
    "huber_loss",
    formula=f"dz/dx[i] = d * {_SHARE} with d = min(max(x[i] - y[i], -delta), delta);"
    f" dz/dy[i] = -d * {_SHARE} with d = min(max(x[i] - y[i], -delta), delta)",
    reads=_compared,
)
def huber_loss(dz, x, y, *, reduction=1, delta=1.0):
    difference = x - y
    gradient = difference.clamp(-delta, delta) * _shared(dz, difference, reduction)
    return gradient, -gradient


@rule(
    "binary_cross_entropy",
    formula=f"dz/dx[i] = (x[i] - y[i]) / (x[i] * (1 - x[i])) * {_SHARE};"
    f" dz/dy[i] = (log(1 - x[i]) - log(x[i])) * {_SHARE}",
    reads=_compared,
)
def binary_cross_entropy(dz, x, y, *, weight=None, reduction=1):
    dz = _shared(dz, x, reduction) * (1.0 if weight is None else weight)
    slope = (x - y) / (x * (1 - x)).clamp(min=1e-12)  # PyTorch keeps the divisor above 0
    return dz * slope, dz * ((-x).log1p() - x.log())


@rule(
    "binary_cross_entropy_with_logits",
    formula=f"dz/dx[i] = (sigmoid(x[i]) - y[i]) * {_SHARE}; dz/dy[i] = -x[i] * {_SHARE}",
    reads=_compared,
)
def binary_cross_entropy_with_logits(dz, x, y, *, weight=None, pos_weight=None, reduction=1):
    dz = _shared(dz, x, reduction) * (1.0 if weight is None else weight)
    p, positive = x.sigmoid(), 1.0 if pos_weight is None else pos_weight
    log_p, log_not_p = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
    return dz * ((1 - y) * p - positive * y * (1 - p)), dz * (log_not_p - positive * log_p)


@rule("soft_margin_loss", formula=f"dz/dx[i] = -target[i] * sigmoid(-target[i] * x[i]) * {_SHARE}", reads=_compared)
def soft_margin_loss(dz, x, *, target, reduction=1):
    return -target * (-target * x).sigmoid() * _shared(dz, x, reduction)


@rule(
    "nll_loss2d_forward",
    formula="dz/dx[n,c,i,j] = -[c = target[n,i,j] and target[n,i,j] != ignore_index] / z1",
    reads=linear,
)
def nll_loss2d(dz, x, *, target, weight=None, reduction=1, ignore_index=-100):
    counted = target != ignore_index
    token = target.where(counted, 0)
    share = counted.to(x.dtype) if weight is None else weight[token] * counted
    if reduction == 1:
        share = torch.where(counted, share / share.sum(), 0.0)
    return torch.zeros_like(x).scatter(1, token.unsqueeze(1), (-dz * share).unsqueeze(1))


def _own_row(call: Call, out: Index) -> dict[Path, torch.Tensor]:
    ((path, x),) = list(call.float_inputs().items())[:1]
    rows = x.shape[0] if x.dim() == 2 else 1
    whole = torch.cartesian_prod(*[torch.arange(n) for n in x.shape]).reshape(-1, x.dim())
    if call.named()["reduction"] == 0 and x.dim() == 2 and rows:
        whole = whole[whole[:, 0] == out[0]]
    return {path: whole}


@rule(
    "multi_margin_loss",
    formula="dz/dx[i] = [p = 1] * ([i != target[0] and x[target[0]] - x[i] < margin]"
    " - [i = target[0]] * sum[j]([j != target[0] and x[target[0]] - x[j] < margin])) / len(x)",
    reads=_own_row,
    kink="margin reached exactly",
)
def multi_margin_loss(dz, x, *, target, p=1, margin=1, weight=None, reduction=1):
    rows, target = x.reshape(-1, x.shape[-1] if x.dim() else 1), target.reshape(-1)
    own = rows.gather(1, target[:, None])
    short = (margin - own + rows).clamp(min=0).scatter(1, target[:, None], 0)  # by how much a class comes too close
    slope = (short > 0).to(x.dtype) if p == 1 else 2 * short
    if weight is not None:
        slope = slope * weight[target][:, None]
    slope = slope.scatter(1, target[:, None], -slope.sum(1, keepdim=True)) / rows.shape[1]
    upstream = dz.reshape(-1, 1) if reduction == 0 else dz
    return (slope * (upstream / len(rows) if reduction == 1 else upstream)).reshape(x.shape)
