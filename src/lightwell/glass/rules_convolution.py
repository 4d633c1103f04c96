"""Rules of convolution, pooling and resizing.

Averaging and resizing are linear and act on each dimension by itself: one small matrix per dimension says how much of
each input place goes into each output place, and backwards it is used transposed. A convolution's gradients are
convolutions again: that of the input with the same kernel the other way round, that of the kernel between input and dz.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightwell.glass.call import Call, Path
from lightwell.glass.index_map import Index, as_indices
from lightwell.glass.rule import linear, rule
from lightwell.glass.shapes import separable

Taps = list[tuple[int, int]]  # (place in the kernel, place in the input)


def _each(option: Any, dims: int) -> list[int]:
    """An option such as kernel_size, one number per spatial dimension."""
    values = list(option) if isinstance(option, list | tuple) else [option]
    return values * dims if len(values) == 1 else values


# Convolution. Output place o reads input place i = o * stride - padding + k * dilation through element k of the kernel;
# transposed, input and output change places.


def _taps(out: int, size: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool) -> Taps:
    """Along one dimension: which places of the input an output place reads, and through which place of the kernel."""
    if not transposed:
        pairs = [(k, out * stride - padding + k * dilation) for k in range(kernel)]
    else:
        reaches = [(k, out + padding - k * dilation) for k in range(kernel)]
        pairs = [(k, reach // stride) for k, reach in reaches if reach % stride == 0]
    return [(k, i) for k, i in pairs if 0 <= i < size]


def _window(call: Call, out: Index) -> dict[Path, Tensor]:
    named = call.named()
    (px, x), (pw, w), *bias = call.float_inputs().items()
    dims, transposed, groups = x.dim() - 2, bool(named.get("transposed")), named["groups"]
    stride, padding, dilation = (_each(named[name], dims) for name in ("stride", "padding", "dilation"))
    taps = [
        _taps(out[2 + d], x.shape[2 + d], w.shape[2 + d], stride[d], padding[d], dilation[d], transposed)
        for d in range(dims)
    ]
    n, o = out[:2]
    per_group = x.shape[1] // groups  # input channels
    group = o // (w.shape[1] if transposed else w.shape[0] // groups)
    found_x, found_w = [], []
    for c, tap in itertools.product(range(group * per_group, (group + 1) * per_group), itertools.product(*taps)):
        found_x.append([n, c, *(i for _, i in tap)])
        channels = [c, o % w.shape[1]] if transposed else [o, c % per_group]
        found_w.append([*channels, *(k for k, _ in tap)])
    found = {px: as_indices(found_x, x), pw: as_indices(found_w, w)}
    return found | {path: torch.tensor([[o]]) for path, _ in bias}


def _kernel_gradient(
    wide: Tensor, small: Tensor, w: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """sum over the batch and places i of small_i * wide_(i * stride - padding + k * dilation), for each kernel place k.

    That is a convolution whose batch are the channels, and where stride and dilation have changed their roles.
    """
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[wide.dim() - 3]
    full = conv(wide.transpose(0, 1), small.transpose(0, 1), None, dilation, padding, stride).transpose(0, 1)
    return full[(slice(None), slice(None), *(slice(n) for n in w.shape[2:]))]


@rule(
    "convolution",
    "_convolution",
    "convolution_overrideable",
    "mkldnn_convolution",
    "cudnn_convolution",
    formula="dz[o,i]/dx[c,j] = w[o, c, j - i * stride[0] + padding[0]];"
    " dz[o,i]/dw[p,c,k] = [o=p] * x[c, i * stride[0] - padding[0] + k]; dz[o,i]/db[p] = [o=p]",
    reads=_window,
)
def convolution(dz, x, w, b=None, *, stride, padding, dilation, groups, transposed=False):
    dims = x.dim() - 2
    stride, padding, dilation = (_each(option, dims) for option in (stride, padding, dilation))
    if transposed:
        dx = torch.convolution(dz, w, None, stride, padding, dilation, False, [0] * dims, groups)
        dx = dx[(slice(None), slice(None), *(slice(n) for n in x.shape[2:]))]
    else:
        reached = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(dz.shape[2:], stride, padding, dilation, w.shape[2:])
        ]
        rest = [n - r for n, r in zip(x.shape[2:], reached)]  # input places at the end that no window reached
        dx = torch.convolution(dz, w, None, stride, padding, dilation, True, rest, groups)
    wide, small = (dz, x) if transposed else (x, dz)
    parts = zip(wide.chunk(groups, 1), small.chunk(groups, 1), w.chunk(groups, 0))
    dw = torch.cat([_kernel_gradient(*part, stride, padding, dilation) for part in parts], 0)
    return dx, dw, dz.sum([0, *range(2, dz.dim())])


# Averages. Row o of a matrix has the share of each input place in output place o.


def _separable(dz: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The transposed matrices, each applied to its own of the last dimensions."""
    for d, matrix in enumerate(reversed(matrices), start=1):
        dz = (dz.movedim(-d, -1) @ matrix.to(dz)).movedim(-1, -d)
    return dz


def _window_matrix(starts: Sequence[int], ends: Sequence[int], size: int) -> Tensor:
    place = torch.arange(size)
    return torch.stack([((max(s, 0) <= place) & (place < e)).double() for s, e in zip(starts, ends)])


def _averaged(i: str, j: str, d: int) -> str:
    return f"([0 <= {j} - {i} * stride[{d}] + padding[{d}] < kernel_size[{d}]] / kernel_size[{d}])"


@rule("avg_pool2d", formula=separable(2, _averaged), reads=linear, says="avg_pool")
@rule("avg_pool3d", formula=separable(3, _averaged), reads=linear, says="avg_pool")
def avg_pool(dz, x, *, call, kernel_size, stride, padding, count_include_pad=True, divisor_override=None):
    dims = 3 if call.name == "avg_pool3d" else 2
    matrices = []
    options = zip(*(_each(option, dims) for option in (kernel_size, stride or kernel_size, padding)))
    for size, outputs, (k, s, p) in zip(x.shape[-dims:], dz.shape[-dims:], options):
        starts = [o * s - p for o in range(outputs)]
        ends = [min(start + k, size + p) for start in starts]
        matrix = _window_matrix(starts, ends, size)
        lengths = torch.tensor([e - s for s, e in zip(starts, ends)]) if count_include_pad else matrix.sum(1)
        matrices.append(matrix if divisor_override else matrix / lengths[:, None])
    return _separable(dz, matrices) / (divisor_override or 1)


def _adaptive_windows(size: int, outputs: int) -> tuple[list[int], list[int]]:
    """Windows of nearly equal size that cover everything."""
    return [o * size // outputs for o in range(outputs)], [-(-(o + 1) * size // outputs) for o in range(outputs)]


def _adaptive(dims: int) -> str:
    def factor(i: str, j: str, d: int) -> str:
        size, outputs = f"size(x, {d - dims})", f"size(z, {d - dims})"
        start, end = f"{i} * {size} // {outputs}", f"-(-({i} + 1) * {size} // {outputs})"
        return f"([{start} <= {j} < {end}] / ({end} - {start}))"

    return separable(dims, factor)


@rule("adaptive_avg_pool1d", formula=_adaptive(1), reads=linear, says="adaptive_avg_pool")
@rule("_adaptive_avg_pool2d", formula=_adaptive(2), reads=linear, says="adaptive_avg_pool")
@rule("_adaptive_avg_pool3d", formula=_adaptive(3), reads=linear, says="adaptive_avg_pool")
def adaptive_avg_pool(dz, x, *, output_size):
    matrices = [
        _window_matrix(*_adaptive_windows(size, n), size)
        for size, n in zip(x.shape[-len(output_size) :], dz.shape[-len(output_size) :])
    ]
    return _separable(dz, [matrix / matrix.sum(1, keepdim=True) for matrix in matrices])


# Maxima: the gradient goes to the place that won, whose number the kernel returned.


def _to_winners(dz: Tensor, x: Tensor, places: Tensor, dims: int) -> Tensor:
    flat = torch.zeros_like(x).flatten(-dims)
    return flat.scatter_add(-1, places.flatten(-dims), dz.flatten(-dims)).reshape(x.shape)


def _max_window(call: Call, out: Index) -> dict[Path, Tensor]:
    named = call.named()
    ((path, x),) = call.float_inputs().items()
    dims = 3 if "3d" in call.name else 2
    if "output_size" in named:
        windows = [_adaptive_windows(n, z) for n, z in zip(x.shape[-dims:], call.outputs[0].shape[-dims:])]
        places = [list(range(s[o], e[o])) for (s, e), o in zip(windows, out[-dims:])]
    else:
        kernel = _each(named["kernel_size"], dims)
        steps = _each(named["stride"] or named["kernel_size"], dims)
        options = zip(kernel, steps, _each(named["padding"], dims), _each(named["dilation"], dims))
        taps = [_taps(o, n, *each, False) for o, n, each in zip(out[-dims:], x.shape[-dims:], options)]
        places = [[i for _, i in tap] for tap in taps]
    return {path: as_indices([[*out[:-dims], *own] for own in itertools.product(*places)], x)}


_WINNER = "dz[i,j]/dx[k,l] = [z1[i,j] = k * size(x, 3) + l]"


@rule("max_pool2d_with_indices", "adaptive_max_pool2d", formula=_WINNER, reads=_max_window, kink="ties")
def max_pool2d(dz, x, *, zs):
    return _to_winners(dz, x, zs[1], 2)


@rule(
    "max_pool3d_with_indices",
    "adaptive_max_pool3d",
    formula="dz[a,i,j]/dx[b,k,l] = [z1[a,i,j] = (b * size(x, 3) + k) * size(x, 4) + l]",
    reads=_max_window,
    kink="ties",
)
def max_pool3d(dz, x, *, zs):
    return _to_winners(dz, x, zs[1], 3)


@rule("max_unpool2d", formula="dz[i,j]/dx[k,l] = [indices[k,l] = i * size(z, 3) + j]", reads=linear)
def max_unpool2d(dz, x, *, indices):
    return dz.flatten(-2).gather(-1, indices.flatten(-2)).reshape(x.shape)


@rule(
    "max_unpool3d",
    formula="dz[a,i,j]/dx[b,k,l] = [indices[b,k,l] = (a * size(z, 3) + i) * size(z, 4) + j]",
    reads=linear,
)
def max_unpool3d(dz, x, *, indices):
    return dz.flatten(-3).gather(-1, indices.flatten(-3)).reshape(x.shape)


# Resizing.


def _scales(call: Call, dims: int) -> list[float | None]:
    named = call.named()
    return [named.get(name) for name in (("scales",) if dims == 1 else ("scales_d", "scales_h", "scales_w")[-dims:])]


def _nearest_matrix(size: int, outputs: int, scale: float | None, shift: float) -> Tensor:
    """The kernel computes places in single precision, and so does this."""
    step = torch.tensor(1 / scale if scale else size / outputs, dtype=torch.float32)
    places = ((torch.arange(outputs) + shift) * step).floor().long().clamp(max=size - 1)
    return torch.nn.functional.one_hot(places, size).double()


def _linear_matrix(size: int, outputs: int, scale: float | None, align_corners: bool) -> Tensor:
    """Each output lies between two inputs: a hat of width 1 around its place."""
    place = torch.arange(outputs, dtype=torch.float64)
    if align_corners:
        place = place * ((size - 1) / max(outputs - 1, 1))
    else:
        place = (place + 0.5) * (1 / scale if scale else size / outputs) - 0.5
    place = place.clamp(0, size - 1)
    return (1 - (place[:, None] - torch.arange(size)).abs()).clamp(min=0)


def _nearest(dims: int) -> str:
    return separable(dims, lambda i, j, d: f"[{j} = {i} * size(x, {d - dims}) // size(z, {d - dims})]")


@rule("upsample_nearest1d", formula=_nearest(1), reads=linear, says="upsample_nearest")
@rule("upsample_nearest2d", formula=_nearest(2), reads=linear, says="upsample_nearest")
@rule("upsample_nearest3d", formula=_nearest(3), reads=linear, says="upsample_nearest")
def upsample_nearest(dz, x, *, call):
    dims = x.dim() - 2
    sizes = zip(x.shape[2:], dz.shape[2:], _scales(call, dims))
    return _separable(dz, [_nearest_matrix(*size, shift=0) for size in sizes])


def _nearest_exact(dims: int) -> str:
    return separable(dims, lambda i, j, d: f"[{j} = (2 * {i} + 1) * size(x, {d - dims}) // (2 * size(z, {d - dims}))]")


@rule("_upsample_nearest_exact1d", formula=_nearest_exact(1), reads=linear, says="upsample_nearest_exact")
@rule("_upsample_nearest_exact2d", formula=_nearest_exact(2), reads=linear, says="upsample_nearest_exact")
@rule("_upsample_nearest_exact3d", formula=_nearest_exact(3), reads=linear, says="upsample_nearest_exact")
def upsample_nearest_exact(dz, x, *, call):
    dims = x.dim() - 2
    sizes = zip(x.shape[2:], dz.shape[2:], _scales(call, dims))
    return _separable(dz, [_nearest_matrix(*size, shift=0.5) for size in sizes])


def _hat(dims: int) -> str:
    def factor(i: str, j: str, d: int) -> str:
        size, outputs = f"size(x, {d - dims})", f"size(z, {d - dims})"
        return f"max(0, 1 - abs(min(max(({i} + 1 / 2) * {size} / {outputs} - 1 / 2, 0), {size} - 1) - {j}))"

    return separable(dims, factor)


@rule("upsample_linear1d", formula=_hat(1), reads=linear, says="upsample_linear")
@rule("upsample_bilinear2d", formula=_hat(2), reads=linear, says="upsample_linear")
@rule("upsample_trilinear3d", formula=_hat(3), reads=linear, says="upsample_linear")
def upsample_linear(dz, x, *, call, align_corners):
    dims = x.dim() - 2
    sizes = zip(x.shape[2:], dz.shape[2:], _scales(call, dims))
    return _separable(dz, [_linear_matrix(*size, align_corners) for size in sizes])
