"""Rules of reductions and of what runs along a line: products, variances, norms, extremes, cumulative sums, sorting.

Where an extreme is reached several times, each row says how PyTorch shares the gradient: evenly among the equals
(`amax`, `max` without a dimension), or all to the one whose index was returned (`max.dim`, `topk`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightwell.glass.call import Call, Path
from lightwell.glass.index_map import Index, along, box, everything
from lightwell.glass.rule import rule
from lightwell.glass.shapes import count, widened, wrapped


def _as_lines(x: Tensor, dim: int) -> Tensor:
    """`x` with `dim` last; a 0-D tensor is a line of one."""
    return x.reshape(1) if x.dim() == 0 else x.movedim(dim, -1)


def _like(lines: Tensor, x: Tensor, dim: int) -> Tensor:
    return lines.reshape(()) if x.dim() == 0 else lines.movedim(-1, dim)


# Products. The slope of a product is the product of all other factors, which a division by x would lose where x is 0.


def _others(x: Tensor) -> Tensor:
    """Along the last dimension: the product of all other elements, as those before times those after."""
    one = torch.ones_like(x[..., :1])
    before = torch.cat([one, x[..., :-1]], -1).cumprod(-1)
    after = torch.cat([x[..., 1:], one], -1).flip(-1).cumprod(-1).flip(-1)
    return before * after


@rule("prod", formula="dz/dx[i] = z / x[i]", reads=along())
def prod(dz, x, *, dim=None, keepdim=False):
    if dim is None:
        return dz * _others(x.reshape(-1)).reshape(x.shape)
    return widened(dz, x, dim, keepdim) * _like(_others(_as_lines(x, dim)), x, dim)


@rule("cumprod", formula="dz[i]/dx[j] = [j <= i] * z[i] / x[j]", reads=lambda call, out: _up_to(call, out))
def cumprod(dz, x, *, dim):
    line, upstream = _as_lines(x, dim), _as_lines(dz, dim)
    n = line.shape[-1]
    own = torch.eye(n, dtype=torch.bool, device=x.device)
    without = line.unsqueeze(-2).expand(*line.shape[:-1], n, n).masked_fill(own, 1).cumprod(-1)  # [j, i]: no x_j in z_i
    return _like((without.triu() * upstream.unsqueeze(-2)).sum(-1), x, dim)


# Cumulative sums: an element speaks in all later outputs.


def _up_to(call: Call, out: Index) -> dict[Path, Tensor]:
    """Along `dim`, everything up to the own place."""
    ((path, x),) = call.float_inputs().items()
    if not x.dim():
        return {path: box(x)}
    dim = call.named()["dim"] % x.dim()
    line = box(x, [None if d == dim else i for d, i in enumerate(out)])
    return {path: line[line[:, dim] <= out[dim]]}


@rule("cumsum", formula="dz[i]/dx[j] = [j <= i]", reads=_up_to)
def cumsum(dz, x, *, dim):
    return dz.flip(dim).cumsum(dim).flip(dim) if x.dim() else dz


@rule("logcumsumexp", formula="dz[i]/dx[j] = [j <= i] * exp(x[j] - z[i])", reads=_up_to)
def logcumsumexp(dz, x, *, z, dim):
    line, sums, upstream = _as_lines(x, dim), _as_lines(z, dim), _as_lines(dz, dim)
    share = (line.unsqueeze(-1) - sums.unsqueeze(-2)).exp().triu()  # [j, i]: the part of x_j in the sum z_i
    return _like((share * upstream.unsqueeze(-2)).sum(-1), x, dim)


@rule("cummax", "cummin", formula="dz[i]/dx[j] = [j = z1[i]]", reads=_up_to, kink="ties")
def cummax(dz, x, *, zs, dim):
    return torch.zeros_like(x).scatter_add(dim, zs[1], dz)


# Sums of functions.


@rule("nansum", formula="dz/dx[i] = [x[i] = x[i]]", reads=along())
def nansum(dz, x, *, dim=None, keepdim=False):
    return widened(dz, x, dim, keepdim) * ~x.isnan()


@rule("logsumexp", formula="dz/dx[i] = exp(x[i] - z)", reads=along())
def logsumexp(dz, x, *, z, dim=None, keepdim=False):
    return widened(dz, x, dim, keepdim) * (x - widened(z, x, dim, keepdim)).exp()


def _degrees(x: Tensor, dim: object, correction: float | None, unbiased: bool) -> float:
    """What a variance divides by; a set of one has no unbiased variance, and its slope is not a number."""
    freedom = count(x, dim) - (1 if correction is None and unbiased else correction or 0)
    return freedom if freedom > 0 else math.nan if freedom == 0 else freedom


@rule("var", formula="dz/dx[i] = 2 * (x[i] - sum[j](x[j]) / len(x)) / (len(x) - 1)", reads=along())
def var(dz, x, *, dim=None, correction=None, unbiased=True, keepdim=False):
    centred = x - x.mean(wrapped(dim, x.dim()), keepdim=True)
    return widened(dz, x, dim, keepdim) * 2 * centred / _degrees(x, dim, correction, unbiased)


@rule("std", formula="dz/dx[i] = (x[i] - sum[j](x[j]) / len(x)) / (len(x) - 1) / z", reads=along())
def std(dz, x, *, z, dim=None, correction=None, unbiased=True, keepdim=False):
    through_root = (dz / (2 * z)).masked_fill(z == 0, 0)
    return var(through_root, x, dim=dim, correction=correction, unbiased=unbiased, keepdim=keepdim)


@rule(
    "var_mean",
    formula="dz0/dx[i] = 2 * (x[i] - z1) / (len(x) - 1); dz1/dx[i] = 1 / len(x)",
    reads=along(),
)
def var_mean(dzs, x, *, dim=None, correction=None, unbiased=True, keepdim=False):
    gradient = torch.zeros_like(x)
    if dzs[0] is not None:
        gradient = gradient + var(dzs[0], x, dim=dim, correction=correction, unbiased=unbiased, keepdim=keepdim)
    if dzs[1] is not None:
        gradient = gradient + widened(dzs[1], x, dim, keepdim) / count(x, dim)
    return gradient


@rule(
    "std_mean",
    formula="dz0/dx[i] = (x[i] - z1) / (len(x) - 1) / z0; dz1/dx[i] = 1 / len(x)",
    reads=along(),
)
def std_mean(dzs, x, *, zs, dim=None, correction=None, unbiased=True, keepdim=False):
    through_root = None if dzs[0] is None else (dzs[0] / (2 * zs[0])).masked_fill(zs[0] == 0, 0)
    return var_mean((through_root, dzs[1]), x, dim=dim, correction=correction, unbiased=unbiased, keepdim=keepdim)


# Norms.


def norm_slope(x: Tensor, z: Tensor, p: float, dims: object) -> Tensor:
    """d/dx of the p-norm z of x over `dims` (z widened); 0 where the norm is 0, as PyTorch has it."""
    if p == 0:
        return torch.zeros_like(x)
    if p == 1:
        return x.sign()
    if math.isinf(p):
        reached = x.abs() == z
        return x.sign() * reached / reached.sum(wrapped(dims, x.dim()), keepdim=True)
    slope = x / z if p == 2 else x.sign() * (x.abs() / z) ** (p - 1)
    return slope.masked_fill((z == 0) | ((x == 0) & (p < 1)), 0)


@rule("linalg_vector_norm", formula="dz/dx[i] = sign(x[i]) * (abs(x[i]) / z)**(ord - 1)", reads=along(), kink="z = 0")
def vector_norm(dz, x, *, z, ord=2, dim=None, keepdim=False):
    z = widened(z, x, dim, keepdim)
    return widened(dz, x, dim, keepdim) * norm_slope(x, z, float(ord), dim)


@rule("norm", formula="dz/dx[i] = sign(x[i]) * (abs(x[i]) / z)**(p - 1)", reads=along(), kink="z = 0")
def norm(dz, x, *, z, p=2, dim=None, keepdim=False):
    z = widened(z, x, dim, keepdim)
    return widened(dz, x, dim, keepdim) * norm_slope(x, z, 2.0 if p is None else float(p), dim)


@rule(
    "dist",
    formula="dz/dx[i] = sign(x[i] - y[i]) * (abs(x[i] - y[i]) / z)**(p - 1);"
    " dz/dy[i] = -sign(x[i] - y[i]) * (abs(x[i] - y[i]) / z)**(p - 1)",
    reads=everything,
    kink="z = 0",
)
def dist(dz, x, y, *, z, p=2):
    gradient = dz * norm_slope(x - y, z, float(p), None)
    return gradient, -gradient


def _two_rows(call: Call, out: Index) -> dict[Path, Tensor]:
    (first, x), (second, y) = call.float_inputs().items()
    *batch, i, j = out
    return {first: box(x, [*batch, i, None]), second: box(y, [*batch, j, None])}


@rule(
    "_cdist_forward",
    formula="dz[i,j]/dx[k,l] = [i=k] * sign(x[i,l] - y[j,l]) * (abs(x[i,l] - y[j,l]) / z[i,j])**(p - 1);"
    " dz[i,j]/dy[k,l] = -[j=k] * sign(x[i,l] - y[j,l]) * (abs(x[i,l] - y[j,l]) / z[i,j])**(p - 1)",
    reads=_two_rows,
    kink="z = 0",
)
def cdist(dz, x, y, *, z, p):
    difference = x.unsqueeze(-2) - y.unsqueeze(-3)
    slopes = dz.unsqueeze(-1) * norm_slope(difference, z.unsqueeze(-1), p, -1)
    return slopes.sum(-2), -slopes.sum(-3)


# Extremes and order.


def _shared(dz: Tensor, x: Tensor, z: Tensor, dims: object) -> Tensor:
    """The gradient in equal parts to all elements that reach the value z (both widened)."""
    reached = (x == z) | (x.isnan() & z.isnan())
    return dz * reached / reached.sum(wrapped(dims, x.dim()), keepdim=True)


@rule("amax", "amin", formula="dz/dx[i] = [x[i] = z] / sum[j]([x[j] = z])", reads=along(), kink="ties")
def amax(dz, x, *, z, dim=None, keepdim=False):
    return _shared(widened(dz, x, dim, keepdim), x, widened(z, x, dim, keepdim), dim)


@rule(
    "max",
    "min",
    "median",
    "nanmedian",
    formula="dz/dx[i] = [x[i] = z] / sum[j]([x[j] = z])",
    reads=everything,
    kink="ties",
)
def max_of_all(dz, x, *, z):
    return _shared(dz, x, z, None)


@rule(
    "aminmax",
    formula="dz0/dx[i] = [x[i] = z0] / sum[j]([x[j] = z0]); dz1/dx[i] = [x[i] = z1] / sum[j]([x[j] = z1])",
    reads=along(),
    kink="ties",
)
def aminmax(dzs, x, *, zs, dim=None, keepdim=False):
    parts = [amax(dz, x, z=z, dim=dim, keepdim=keepdim) for dz, z in zip(dzs, zs) if dz is not None]
    return torch.stack(parts).sum(0)


def _to_index(dz: Tensor, x: Tensor, index: Tensor, dim: int, keepdim: bool) -> Tensor:
    if not x.dim():
        return dz
    if not keepdim:
        dz, index = dz.unsqueeze(dim), index.unsqueeze(dim)
    return torch.zeros_like(x).scatter_add(dim, index, dz)


@rule(
    "max.dim",
    "min.dim",
    "median.dim",
    "nanmedian.dim",
    "kthvalue",
    "mode",
    formula="dz/dx[i] = [i = z1]",
    reads=along(-1),
    kink="ties",
)
def selected(dz, x, *, zs, dim=-1, keepdim=False):
    return _to_index(dz, x, zs[1], dim, keepdim)


@rule("topk", "sort", formula="dz[i]/dx[j] = [j = z1[i]]", reads=along(-1), kink="ties")
def ordered(dz, x, *, zs, dim=-1):
    return _to_index(dz, x, zs[1], dim, keepdim=True)
