"""Rules of linear algebra: products of vectors, matrices and stacks of them, inverses, determinants, solutions.

Source: Giles 2008, "Collected matrix derivative results for forward and reverse mode algorithmic differentiation".
Left out on purpose: decompositions of symmetric matrices (Cholesky, eigenvalues), whose derivative is one only among
symmetric changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightwell.glass.call import Call, Path
from lightwell.glass.index_map import Index, aligned, box, everything, product
from lightwell.glass.rule import linear, rule


@rule("mv", formula="dz[i]/dx[k,l] = [i=k] * v[l]; dz[i]/dv[k] = x[i,k]", reads=product("ik k -> i"))
def mv(dz, x, v):
    return torch.outer(dz, v), x.T @ dz


@rule("dot", "vdot", formula="dz/dx[i] = y[i]; dz/dy[i] = x[i]", reads=everything)
def dot(dz, x, y):
    return dz * y, dz * x


@rule(
    "addmv",
    formula="dz/db = beta; dz[i]/dx[k,l] = alpha * [i=k] * v[l]; dz[i]/dv[k] = alpha * x[i,k]",
    reads=product("* ik k -> i"),
)
def addmv(dz, b, x, v, *, beta=1, alpha=1):
    return dz * beta, alpha * torch.outer(dz, v), alpha * x.T @ dz


@rule(
    "addr",
    formula="dz/db = beta; dz[i,j]/dx[k] = alpha * [i=k] * y[j]; dz[i,j]/dy[k] = alpha * [j=k] * x[i]",
    reads=product("* i j -> ij"),
)
def addr(dz, b, x, y, *, beta=1, alpha=1):
    return dz * beta, alpha * dz @ y, alpha * dz.T @ x


@rule(
    "baddbmm",
    formula="dz/db = beta; dz[n,i,j]/dx[m,k,l] = alpha * [n=m and i=k] * w[n,l,j];"
    " dz[n,i,j]/dw[m,k,l] = alpha * [n=m and j=l] * x[n,i,k]",
    reads=product("* nik nkj -> nij"),
)
def baddbmm(dz, b, x, w, *, beta=1, alpha=1):
    return dz * beta, alpha * dz @ w.mT, alpha * x.mT @ dz


@rule(
    "addbmm",
    formula="dz/db = beta; dz[i,j]/dx[n,k,l] = alpha * [i=k] * w[n,l,j]; dz[i,j]/dw[n,k,l] = alpha * [j=l] * x[n,i,k]",
    reads=product("* nik nkj -> ij"),
)
def addbmm(dz, b, x, w, *, beta=1, alpha=1):
    return dz * beta, alpha * dz @ w.mT, alpha * x.mT @ dz


@rule("trace", formula="dz/dx[i,j] = [i=j]", reads=linear)
def trace(dz, x):
    return dz * torch.eye(*x.shape, dtype=x.dtype, device=x.device)


@rule("tril", formula="dz[i,j]/dx[k,l] = [i=k and j=l and j - i <= diagonal]", reads=linear)
def tril(dz, x, *, diagonal=0):
    return dz.tril(diagonal)


@rule("triu", formula="dz[i,j]/dx[k,l] = [i=k and j=l and j - i >= diagonal]", reads=linear)
def triu(dz, x, *, diagonal=0):
    return dz.triu(diagonal)


def _crossed(call: Call, out: Index) -> dict[Path, Tensor]:
    """cross: the two other components."""
    found = {}
    for path, x in call.float_inputs().items():
        places: list[int | None] = [0 if n == 1 else i for n, i in zip(x.shape, out)]
        dim = call.named()["dim"] % x.dim()
        places[dim] = None
        line = box(x, places)
        found[path] = line[line[:, dim] != out[dim]]
    return found


@rule(
    "linalg_cross",
    formula="dz[i]/dx[j] = sum[k]((i - j) * (j - k) * (k - i) / 2 * y[k]);"
    " dz[i]/dy[k] = sum[j]((i - j) * (j - k) * (k - i) / 2 * x[j])",
    reads=_crossed,
)
def cross(dz, x, y, *, dim=-1):
    return torch.linalg.cross(y.expand_as(dz), dz, dim=dim), torch.linalg.cross(dz, x.expand_as(dz), dim=dim)


# Inverses and determinants. From A A^-1 = 1: d(A^-1) = -A^-1 dA A^-1.


def _own_matrix(call: Call, out: Index) -> dict[Path, Tensor]:
    """Everything of the same matrix of the stack."""
    return {p: box(x, [*out[: x.dim() - 2], None, None]) for p, x in call.float_inputs().items()}


@rule("linalg_inv_ex", formula="dz[i,j]/dx[k,l] = -z[i,k] * z[l,j]", reads=_own_matrix)
def inverse(dz, x, *, z):
    return -z.mT @ dz @ z.mT


@rule("_linalg_det", formula="dz/dx[i,j] = z * inv(x)[j,i]", reads=_own_matrix)
def det(dz, x):
    """The cofactors, from A = U diag(s) V. They hold for singular matrices too, for which PyTorch 2.13 gives 0."""
    u, s, v = torch.linalg.svd(x)
    n = s.shape[-1]
    own = torch.eye(n, dtype=torch.bool, device=x.device)
    others = s.unsqueeze(-2).expand(*s.shape, n).masked_fill(own, 1).prod(-1)
    sign = torch.linalg.det(u) * torch.linalg.det(v)
    return (dz * sign)[..., None, None] * (u * others.unsqueeze(-2)) @ v


@rule("_linalg_slogdet", formula="dz0/dx[i,j] = 0; dz1/dx[i,j] = inv(x)[j,i]", reads=_own_matrix)
def slogdet(dzs, x):
    if dzs[1] is None:  # the sign is flat
        return torch.zeros_like(x)
    return dzs[1][..., None, None] * torch.linalg.inv(x).mT


# Solutions X of A X = B: dB = A^-T dX, dA = -dB X^T. `left=False` solves X A = B: everything transposed.


def _solved(dz: Tensor, a: Tensor, z: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    if not left:
        da, db = _solved(dz.mT, a.mT, z.mT, True)
        return da.mT, db.mT
    db = torch.linalg.solve(a.mT, dz)
    return -db @ z.mT, db


def _own_system(call: Call, out: Index) -> dict[Path, Tensor]:
    """The whole matrix of the own system, and the own column of the right side (row, for X A = B)."""
    named = call.named()
    (a, matrix), (b, right) = call.float_inputs().items()
    vectors = right.dim() == matrix.dim() - 1
    batch, own = (out[:-1], []) if vectors else (out[:-2], [None, out[-1]] if named["left"] else [out[-2], None])
    return {
        a: box(matrix, [*aligned(matrix[..., 0, 0], batch), None, None]),
        b: box(right, [*aligned(right[..., 0] if vectors else right[..., 0, 0], batch), *(own or [None])]),
    }


@rule(
    "_linalg_solve_ex",
    formula="dz[i,j]/da[k,l] = -inv(a)[i,k] * z[l,j]; dz[i,j]/db[k,l] = [j=l] * inv(a)[i,k]",
    reads=_own_system,
)
def solve(dz, a, b, *, z, left=True):
    if b.dim() == a.dim() - 1 and z.dim() == b.dim():  # a vector on the right
        da, db = _solved(dz.unsqueeze(-1), a, z.unsqueeze(-1), left)
        return da, db.squeeze(-1)
    return _solved(dz, a, z, left)


def _own_triangle(call: Call, out: Index) -> dict[Path, Tensor]:
    """Back substitution: the rows of the triangle that come before the own one, and the right side's elements there."""
    named = call.named()
    found = _own_system(call, out)
    a, b = found
    upper, left, unit = named["upper"], named["left"], named["unitriangular"]
    own, side = (out[-2], -2) if left else (out[-1], -1)
    later = upper == left  # whether elements after the own one are solved first
    rows, columns = found[a][:, -2], found[a][:, -1]
    inside = rows < columns if upper else rows > columns
    inside |= torch.full_like(inside, not unit) & (rows == columns)
    for index in (rows, columns):
        inside &= index >= own if later else index <= own
    right = found[b][:, side]
    return {a: found[a][inside], b: found[b][right >= own if later else right <= own]}


@rule(
    "linalg_solve_triangular",
    formula="dz[i,j]/da[k,l] = -[k <= l] * inv(triu(a))[i,k] * z[l,j]; dz[i,j]/db[k,l] = [j=l] * inv(triu(a))[i,k]",
    reads=_own_triangle,
)
def solve_triangular(dz, a, b, *, z, upper, left=True, unitriangular=False):
    a = a.triu() if upper else a.tril()
    if unitriangular:
        a = a - torch.diag_embed(a.diagonal(dim1=-2, dim2=-1)) + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    da, db = _solved(dz, a, z, left)
    shift = 1 if unitriangular else 0
    return da.triu(shift) if upper else da.tril(-shift), db
