"""Rules of views and copies: the same numbers under other indices. Backwards, each number goes back where it was.

None of them computes anything, so none counts as an operation with a derivative; but a gradient must pass through all
of them, and a reader can follow it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightwell.errors import TraceError
from lightwell.glass.call import Call
from lightwell.glass.index_map import moved
from lightwell.glass.rule import rule


def origins(call: Call) -> list[Tensor]:
    """For each output of an operation that only moves numbers: which element of its first argument arrived where.

    Counted through row by row from 0; -1 where the number is not from there (padding).
    """
    path = next(iter(call.float_inputs()))
    x = call.get(path)
    numbers = torch.arange(x.numel(), dtype=torch.float64, device=x.device).reshape(x.shape)
    first, second = (call.replay({path: numbers + shift}) for shift in (0, 1))
    return [torch.where(b == a + 1, a, -1).long() for a, b in zip(first, second)]


def carried_back(dzs: list[Tensor | None] | tuple[Tensor | None, ...], call: Call) -> Tensor:
    """Each gradient to the element whose number it belongs to; where one number arrived several times, the sum."""
    x = call.get(next(iter(call.float_inputs())))
    gradient = torch.zeros_like(x, memory_format=torch.contiguous_format).reshape(-1)
    for dz, place in zip(dzs, origins(call)):
        if dz is not None:
            known = place >= 0
            gradient = gradient.index_add(0, place[known], dz[known].to(gradient.dtype))
    return gradient.reshape(x.shape)


@rule(
    "clone",
    "_to_copy",
    "alias",
    "contiguous",
    "lift",
    "lift_fresh",
    "positive",
    "_conj",
    "_neg_view",
    "resolve_conj",
    "alias_copy",
    formula="dz/dx = 1",
    kind="view",
)
def same(dz, x):
    return dz


@rule("copy", formula="dz/dx = 0; dz/dy = 1", reads=moved, kind="view")
def copied(dz, x, y):
    return dz * 0, dz


@rule("fill", formula="dz/dx = 0; dz/dv = 1", reads=moved, kind="view")
def filled(dz, x, v):
    return dz * 0, dz


@rule(
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_alias",
    "view_copy",
    "_reshape_copy",
    "squeeze",
    "squeeze_copy",
    "unsqueeze",
    "unsqueeze_copy",
    formula="dz[i,j]/dx[k] = [k = i * size(z, 1) + j]",
    reads=moved,
    kind="view",
)
def viewed(dz, x):
    return dz.reshape(x.shape)


@rule("expand", "expand_copy", formula="dz[i,j]/dx[k] = [j=k]", reads=moved, kind="view")
def expanded(dz, x):
    return dz.sum_to_size(x.shape)


@rule("t", "t_copy", "numpy_T", formula="dz[i,j]/dx[k,l] = [i=l and j=k]", reads=moved, kind="view")
def turned(dz, x):
    return dz.t()


@rule("transpose", "transpose_copy", formula="dz[i,j]/dx[k,l] = [i=l and j=k]", reads=moved, kind="view")
def transposed(dz, x, *, dim0, dim1):
    return dz.transpose(dim0, dim1)


@rule("permute", "permute_copy", formula="dz[i,j,k]/dx[l,m,n] = [i=n and j=m and k=l]", reads=moved, kind="view")
def permuted(dz, x, *, dims):
    back = sorted(range(x.dim()), key=lambda d: dims[d] % x.dim())
    return dz.permute(back)


@rule("select", "select_copy", formula="dz[i]/dx[k,l] = [k = index and i=l]", reads=moved, kind="view")
def selected(dz, x, *, dim, index):
    gradient = torch.zeros_like(x)
    gradient.select(dim, index).add_(dz)
    return gradient


@rule("slice", "slice_copy", formula="dz[i]/dx[j] = [j = start + i * step]", reads=moved, kind="view")
def sliced(dz, x, *, dim=0, start=None, end=None, step=1):
    along = [slice(None)] * (dim % x.dim()) + [slice(*slice(start, end, step).indices(x.shape[dim]))]
    gradient = torch.zeros_like(x)
    gradient[tuple(along)] = dz
    return gradient


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "unsafe_chunk",
    "split_with_sizes_copy",
    "tensor_split",
    formula="dz0[i]/dx[j] = [i=j]; dz1[i]/dx[j] = [j = i + len(z0)]",
    reads=moved,
    kind="view",
)
def split(dzs, x, *, zs, dim=0):
    return torch.cat([torch.zeros_like(z) if dz is None else dz for dz, z in zip(dzs, zs)], dim)


@rule(
    "unbind",
    "unbind_copy",
    formula="dz0[i]/dx[j,k] = [j=0 and i=k]; dz1[i]/dx[j,k] = [j=1 and i=k]",
    reads=moved,
    kind="view",
)
def unbound(dzs, x, *, zs, dim=0):
    return torch.stack([torch.zeros_like(z) if dz is None else dz for dz, z in zip(dzs, zs)], dim)


@rule("diagonal", "diagonal_copy", formula="dz[i]/dx[j,k] = [i=j and i=k]", reads=moved, kind="view")
def diagonal(dz, x, *, offset=0, dim1=0, dim2=1):
    gradient = torch.zeros_like(x)
    gradient.diagonal(offset, dim1, dim2).add_(dz)
    return gradient


@rule("narrow", "narrow_copy", formula="dz[i]/dx[j] = [j = start + i]", reads=moved, kind="view")
def narrowed(dz, x, *, dim, start, length):
    gradient = torch.zeros_like(x)
    gradient.narrow(dim, start, length).add_(dz)
    return gradient


@rule("unfold", "unfold_copy", formula="dz[i,j]/dx[k] = [k = i * step + j]", reads=moved, kind="view")
def unfolded(dz, x, *, call):
    return carried_back([dz], call)


@rule(
    "as_strided",
    "as_strided_copy",
    formula="dz[i,j]/dx[k] = [k = i * stride[0] + j * stride[1] + storage_offset]",
    reads=moved,
    kind="view",
)
def strided(dz, x, *, call):
    if not x.is_contiguous() or x.storage_offset():
        raise TraceError(
            "expected as_strided of a tensor that lies in its own memory without gaps, got a view of another one.",
            "Its result depends on numbers outside of its argument; use slicing, transposing or unfold.",
        )
    return carried_back([dz], call)


@rule("detach", "detach_copy", formula="dz/dx = 0", kind="zero")
def detached(dz, x):
    """The number goes on, its gradient stops: that is what detach is for."""
    return dz * 0
