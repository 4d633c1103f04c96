"""Rules of picking, placing and rearranging: a gradient goes back to where its number came from.

Reading one element in several places adds its gradients up; an element that was overwritten gets none. Indices
themselves are whole numbers and have no derivative.
"""

from __future__ import annotations

import torch

from lightwell.errors import TraceError
from lightwell.glass.index_map import moved
from lightwell.glass.rule import linear, rule
from lightwell.glass.rules_shape import carried_back
from lightwell.glass.shapes import separable

# Picking.


@rule("gather", formula="dz[i,j]/dx[k,l] = [i=k and l = index[i,j]]", reads=moved)
def gather(dz, x, index, *, dim):
    return torch.zeros_like(x).scatter_add(dim, index, dz), None


@rule("index_select", formula="dz[i,j]/dx[k,l] = [k = index[i] and j=l]", reads=moved)
def index_select(dz, x, index, *, dim):
    if not x.dim():
        return dz.reshape(()), None
    return torch.zeros_like(x).index_add(dim, index, dz), None


@rule("index", "_unsafe_index", formula="dz[i,j]/dx[k,l] = [k = indices[0,i] and j=l]", reads=moved)
def index(dz, x, *, indices):
    return torch.ops.aten.index_put(torch.zeros_like(x), indices, dz, True)


@rule("take", formula="dz[i]/dx[j] = [j = index[i]]", reads=moved)
def take(dz, x, index):
    return torch.zeros_like(x).put(index, dz, accumulate=True), None


@rule("masked_select", formula="dz[i]/dx[j] = [i = sum[k]([k < j] * mask[k])] * mask[j]", reads=moved)
def masked_select(dz, x, *, mask):
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    return torch.zeros(shape, dtype=x.dtype, device=x.device).masked_scatter(mask.expand(shape), dz)


# Placing. The first gradient is that of what was there before.


def _without_reduce(reduce: str | None) -> None:
    if reduce is not None:
        raise TraceError(
            f"expected scatter without a reduction, which has a derivative, got reduce={reduce!r}.",
            "PyTorch gives it no gradient either; use scatter_add or scatter_reduce.",
        )


@rule(
    "scatter",
    formula="dz[i,j]/dx[k,l] = [i=k and j=l] * [0 = sum[m]([index[k,m] = l])];"
    " dz[i,j]/dv[k,l] = [i=k and j = index[k,l]]",
    reads=moved,
)
def scatter(dz, x, index, v, *, dim, reduce=None):
    _without_reduce(reduce)
    return dz.scatter(dim, index, 0), None, dz.gather(dim, index)


@rule(
    "scatter_add", formula="dz[i,j]/dx[k,l] = [i=k and j=l]; dz[i,j]/dv[k,l] = [i=k and j = index[k,l]]", reads=linear
)
def scatter_add(dz, x, index, v, *, dim):
    picked = dz.gather(dim, index)
    gradient = torch.zeros_like(v)
    gradient[tuple(slice(n) for n in index.shape)] = picked
    return dz, None, gradient


@rule(
    "index_add",
    formula="dz[i,j]/dx[k,l] = [i=k and j=l]; dz[i,j]/dv[k,l] = alpha * [i = index[k] and j=l]",
    reads=linear,
)
def index_add(dz, x, index, v, *, dim, alpha=1):
    if not v.dim():
        return dz, None, dz.reshape(()) * alpha
    return dz, None, dz.index_select(dim, index).reshape(v.shape) * alpha


@rule(
    "index_copy",
    formula="dz[i,j]/dx[k,l] = [i=k and j=l] * [0 = sum[m]([index[m] = k])]; dz[i,j]/dv[k,l] = [i = index[k] and j=l]",
    reads=moved,
)
def index_copy(dz, x, index, v, *, dim):
    return dz.index_fill(dim, index, 0), None, dz.index_select(dim, index).reshape(v.shape)


@rule(
    "index_fill",
    formula="dz[i,j]/dx[k,l] = [i=k and j=l] * [0 = sum[m]([index[m] = k])];"
    " dz[i,j]/dv[] = [0 < sum[m]([index[m] = i])]",
    reads=moved,
)
def index_fill(dz, x, index, v, *, dim):
    return dz.index_fill(dim, index, 0), None, dz.sum() - dz.index_fill(dim, index, 0).sum()


@rule(
    "index_put",
    "_index_put_impl",
    "_unsafe_index_put",
    formula="dz[i,j]/dx[k,l] = [i=k and j=l] * [accumulate or 0 = sum[m]([indices[0,m] = k])];"
    " dz[i,j]/dv[k,l] = [i = indices[0,k] and j=l]",
    reads=linear,
)
def index_put(dz, x, v, *, indices, accumulate=False):
    overwritten = torch.ops.aten.index_put(dz, indices, torch.zeros((), dtype=dz.dtype, device=dz.device))
    return dz if accumulate else overwritten, torch.ops.aten.index(dz, indices)


@rule(
    "put",
    formula="dz[i]/dx[j] = [i=j] * [accumulate or 0 = sum[m]([index[m] = j])]; dz[i]/dv[j] = [i = index[j]]",
    reads=linear,
)
def put(dz, x, index, v, *, accumulate=False):
    kept = dz if accumulate else dz.put(index, torch.zeros_like(v))
    return kept, None, dz.take(index).reshape(v.shape)


@rule(
    "masked_scatter",
    formula="dz[i]/dx[j] = [i=j] * [not mask[j]]; dz[i]/dv[j] = mask[i] * [j = sum[k]([k < i] * mask[k])]",
    reads=moved,
)
def masked_scatter(dz, x, mask, v):
    taken = dz.masked_select(mask)
    rest = torch.zeros(v.numel() - taken.numel(), dtype=dz.dtype, device=dz.device)
    return dz.masked_fill(mask, 0), None, torch.cat([taken, rest]).reshape(v.shape)


@rule(
    "slice_scatter",
    formula="dz[i]/dx[j] = [i=j] * [not (start <= j < end)]; dz[i]/dv[j] = [i = start + j]",
    reads=moved,
)
def slice_scatter(dz, x, v, *, dim=0, start=None, end=None, step=1):
    gradient = torch.slice_scatter(dz, torch.zeros_like(v), dim, start, end, step)
    along = [slice(None)] * (dim % x.dim()) + [slice(*slice(start, end, step).indices(x.shape[dim]))]
    return gradient, dz[tuple(along)]


@rule(
    "select_scatter",
    formula="dz[i,j]/dx[k,l] = [i=k and j=l and k != index]; dz[i,j]/dv[k] = [i = index and j=k]",
    reads=moved,
)
def select_scatter(dz, x, v, *, dim, index):
    return torch.select_scatter(dz, torch.zeros_like(v), dim, index), dz.select(dim, index)


@rule(
    "diagonal_scatter", formula="dz[i,j]/dx[k,l] = [i=k and j=l and k != l]; dz[i,j]/dv[k] = [i=k and j=k]", reads=moved
)
def diagonal_scatter(dz, x, v, *, offset=0, dim1=0, dim2=1):
    return torch.diagonal_scatter(dz, torch.zeros_like(v), offset, dim1, dim2), dz.diagonal(offset, dim1, dim2)


# Rearranging and repeating.


@rule("stack", formula="dz[i,j]/dx[k,l] = [i=k and j=l]", reads=moved)
def stack(dz, x, *, dim=0):
    return list(dz.unbind(dim))


@rule("flip", formula="dz[i]/dx[j] = [j = len(x) - 1 - i]", reads=moved)
def flip(dz, x, *, dims):
    return dz.flip(dims)


@rule("roll", formula="dz[i]/dx[j] = [i = (j + shifts[0]) % len(x)]", reads=moved)
def roll(dz, x, *, shifts, dims=()):
    return dz.roll([-n for n in shifts], dims)


@rule("rot90", formula="dz[i,j]/dx[k,l] = [k=j and l = size(x, 1) - 1 - i]", reads=moved)
def rot90(dz, x, *, k=1, dims=(0, 1)):
    return dz.rot90(-k, dims)


@rule("repeat", formula="dz[i]/dx[j] = [j = i % len(x)]", reads=moved)
def repeat(dz, x, *, repeats):
    extra = len(repeats) - x.dim()
    sizes = [1] * extra + list(x.shape)
    tiles = dz.reshape([n for pair in zip(repeats, sizes) for n in pair])  # (times, size, times, size, ...)
    summed = tiles.sum(dim=list(range(0, tiles.dim(), 2))) if tiles.dim() else tiles
    return summed.reshape(x.shape)


@rule("diag_embed", formula="dz[i,j]/dx[k] = [i=j and j=k]", reads=moved)
def diag_embed(dz, x, *, offset=0, dim1=-2, dim2=-1):
    return dz.diagonal(offset, dim1, dim2)


@rule("block_diag", formula="dz[i,j]/dx[k,l,m] = [i = k * size(x, 1) + l and j = k * size(x, 2) + m]", reads=moved)
def block_diag(dz, x):
    gradients, row, column = [], 0, 0
    for block in x:
        height, width = torch.atleast_2d(block).shape
        gradients.append(dz[row : row + height, column : column + width].reshape(block.shape))
        row, column = row + height, column + width
    return gradients


@rule("constant_pad_nd", formula="dz[i]/dx[j] = [i = j + pad[0]]", reads=moved)
def constant_pad(dz, x, *, pad):
    return torch.nn.functional.pad(dz, [-n for n in pad])


def _pad(dims: int, d: int) -> str:
    """How much stands before the input along dimension d; PyTorch counts the last dimension first."""
    return f"padding[{2 * (dims - 1 - d)}]"


def _mirrored(dims: int) -> str:
    def factor(i: str, j: str, d: int) -> str:
        start, last = _pad(dims, d), f"(size(x, {d - dims}) - 1)"
        inside, before = f"[{i} = {j} + {start}]", f"[0 < {j} and {i} = {start} - {j}]"
        return f"({inside} + {before} + [{j} < {last} and {i} = 2 * {last} - {j} + {start}])"

    return separable(dims, factor)


def _continued(dims: int) -> str:
    def factor(i: str, j: str, d: int) -> str:
        return f"[{j} = min(max({i} - {_pad(dims, d)}, 0), size(x, {d - dims}) - 1)]"

    return separable(dims, factor)


@rule("reflection_pad1d", formula=_mirrored(1), reads=moved, says="reflection_pad")
@rule("reflection_pad2d", formula=_mirrored(2), reads=moved, says="reflection_pad")
@rule("reflection_pad3d", formula=_mirrored(3), reads=moved, says="reflection_pad")
@rule("replication_pad1d", formula=_continued(1), reads=moved, says="replication_pad")
@rule("replication_pad2d", formula=_continued(2), reads=moved, says="replication_pad")
@rule("replication_pad3d", formula=_continued(3), reads=moved, says="replication_pad")
def pad(dz, x, *, call):
    return carried_back([dz], call)


@rule(
    "pixel_shuffle",
    formula="dz[i,j]/dx[c,k,l] = [c = i % upscale_factor * upscale_factor + j % upscale_factor"
    " and k = i // upscale_factor and l = j // upscale_factor]",
    reads=moved,
)
def pixel_shuffle(dz, x, *, upscale_factor):
    return torch.nn.functional.pixel_unshuffle(dz, upscale_factor)


@rule(
    "pixel_unshuffle",
    formula="dz[c,k,l]/dx[i,j] = [c = i % downscale_factor * downscale_factor + j % downscale_factor"
    " and k = i // downscale_factor and l = j // downscale_factor]",
    reads=moved,
)
def pixel_unshuffle(dz, x, *, downscale_factor):
    return torch.nn.functional.pixel_shuffle(dz, downscale_factor)


@rule(
    "channel_shuffle",
    "native_channel_shuffle",
    formula="dz[c,i,k]/dx[d,j,l] = [i=j and k=l"
    " and c = d % (size(x, 1) // groups) * groups + d // (size(x, 1) // groups)]",
    reads=moved,
)
def channel_shuffle(dz, x, *, groups):
    return torch.nn.functional.channel_shuffle(dz, x.shape[1] // groups)


@rule(
    "im2col",
    formula="dz[a,b]/dx[j,k] = [j = a // kernel_size[1] + b // (size(x, -1) - kernel_size[1] + 1)"
    " and k = a % kernel_size[1] + b % (size(x, -1) - kernel_size[1] + 1)]",
    reads=linear,
)
def im2col(dz, x, *, kernel_size, dilation, padding, stride):
    size = tuple(x.shape[-2:])
    return torch.nn.functional.fold(dz, size, kernel_size, dilation, padding, stride)


@rule(
    "col2im",
    formula="dz[j,k]/dx[a,b] = [j = a // kernel_size[1] + b // (size(z, -1) - kernel_size[1] + 1)"
    " and k = a % kernel_size[1] + b % (size(z, -1) - kernel_size[1] + 1)]",
    reads=linear,
)
def col2im(dz, x, *, kernel_size, dilation, padding, stride):
    return torch.nn.functional.unfold(dz, kernel_size, dilation, padding, stride)
