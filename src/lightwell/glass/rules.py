"""The chain rule as a table: for every operation, how fast its output changes when one of its inputs does.

A network is a chain of small operations, and the loss L is its last link. Suppose that of some operation z = f(x) we
already know dL/dz: how fast L changes when z does. Then

    dL/dx = dL/dz * dz/dx                          upstream gradient times local derivative

and that is the whole of backpropagation. Start at the loss with dL/dL = 1, walk the chain backwards, multiply. If x is
used in several places, changes reach L along several paths, and their products add up:

    dL/dx_i = sum over all elements j that read x_i of dL/dz_j * dz_j/dx_i

What remains to know is dz/dx for each kind of operation: one row of the table below for each. A row takes `dz`, short
for dL/dz, of the shape of z, and gives dL/dx, of the shape of x. Its formula states the local derivative alone, element
by element if it names no indices, otherwise entry by entry; [i=j] is 1 where i equals j and else 0. `reads` says which
input elements an output element depends on (left out: those at its own place). `glass.rule` says what else a row may
ask for; broadcast arguments are summed back there, once for all.

This file has the rows that GPT-2 and its modern successors are made of, in the order in which one best learns them. The
table goes on in the side files named at the end, and docs/rules.md lists all of it. Every row is checked by finite
differences and against PyTorch, its formula against its code, in tests/glass.

Sources: Rumelhart, Hinton, Williams 1986 (backpropagation); PyTorch's derivatives.yaml for its choices at kinks.
"""

from __future__ import annotations

import math

import torch

from lightwell.glass.attention import attention_formula, attention_scores
from lightwell.glass.index_map import along, attended, last_dims, moved, product
from lightwell.glass.rule import RULES, Rule, find, linear, rule
from lightwell.glass.shapes import count, widened

__all__ = ["RULES", "Rule", "find", "rule"]

# 1. Arithmetic. An output element reads the elements at its own place.


@rule("add", formula="dz/dx = 1; dz/dy = alpha")
def add(dz, x, y, *, alpha=1):
    return dz, dz * alpha


@rule("sub", formula="dz/dx = 1; dz/dy = -alpha")
def sub(dz, x, y, *, alpha=1):
    return dz, -dz * alpha


@rule("neg", formula="dz/dx = -1")
def neg(dz, x):
    return -dz


@rule("mul", formula="dz/dx = y; dz/dy = x")
def mul(dz, x, y):
    return dz * y, dz * x


@rule("div", formula="dz/dx = 1 / y; dz/dy = -x / y**2")
def div(dz, x, y):
    return dz / y, -dz * (x / y) / y


@rule("pow", formula="dz/dx = [y != 0] * (y * x**(y - 1)); dz/dy = [x != 0 or y < 0] * (x**y * log(x))")
def pow(dz, x, y, *, z):
    dx = torch.where(y == 0, 0.0, y * x ** (y - 1))
    dy = torch.where((x == 0) & (y >= 0), 0.0, z * x.log())
    return dz * dx, dz * dy


# 2. Functions of one number. Many slopes are said most simply by the output z itself.


@rule("exp", formula="dz/dx = z")
def exp(dz, x, *, z):
    return dz * z


@rule("log", formula="dz/dx = 1 / x")
def log(dz, x):
    return dz / x


@rule("sqrt", formula="dz/dx = 1 / (2 * z)")
def sqrt(dz, x, *, z):
    return dz / (2 * z)


@rule("rsqrt", formula="dz/dx = -z**3 / 2")
def rsqrt(dz, x, *, z):
    return dz * -0.5 * z**3


@rule("sin", formula="dz/dx = cos(x)")
def sin(dz, x):
    return dz * x.cos()


@rule("cos", formula="dz/dx = -sin(x)")
def cos(dz, x):
    return -dz * x.sin()


# 3. Activations: what bends the line, so that layers do not collapse into one.


@rule("sigmoid", formula="dz/dx = z * (1 - z)")
def sigmoid(dz, x, *, z):
    return dz * z * (1 - z)


@rule("tanh", formula="dz/dx = 1 - z**2")
def tanh(dz, x, *, z):
    return dz * (1 - z**2)


@rule("relu", formula="dz/dx = [x > 0]", kink="x = 0")
def relu(dz, x):
    return dz * (x > 0)


@rule("silu", formula="dz/dx = s * (1 + x * (1 - s)) with s = sigmoid(x)")
def silu(dz, x):
    s = x.sigmoid()
    return dz * s * (1 + x * (1 - s))


GELU_EXACT = "(1 + erf(x / sqrt(2))) / 2 + x * exp(-x**2 / 2) / sqrt(2 * pi)"
GELU_TANH = "(1 + t + x * (1 - t**2) * sqrt(2 / pi) * (1 + 0.134145 * x**2)) / 2"


@rule(
    "gelu",
    formula=f'dz/dx = [approximate = "none"] * ({GELU_EXACT}) + [approximate = "tanh"] * ({GELU_TANH})'
    " with t = tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))",
)
def gelu(dz, x, *, approximate="none"):
    if approximate == "none":  # z = x Phi(x), Phi the normal distribution: the product rule
        below, density = (1 + torch.erf(x / math.sqrt(2))) / 2, torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return dz * (below + x * density)
    slope = math.sqrt(2 / math.pi)  # z = x (1 + t) / 2: GPT-2's form
    t = torch.tanh(slope * (x + 0.044715 * x**3))
    return dz * ((1 + t) + x * (1 - t * t) * slope * (1 + 3 * 0.044715 * x * x)) / 2


# 4. Choosing and joining: the gradient goes where the number came from.


@rule("where", formula="dz/dx = [c]; dz/dy = [not c]", reads=moved)
def where(dz, c, x, y):
    return None, dz * c, dz * ~c.bool()


@rule("masked_fill", formula="dz/dx = [not m]; dz/dv = [m]", reads=moved)
def masked_fill(dz, x, m, v):
    return dz * ~m, None, dz * m


@rule("cat", formula="dz[i]/dx[k,j] = [i = k * size(x, 1) + j]", reads=moved)
def cat(dz, x, *, dim=0):
    gradients, start = [], 0
    for piece in x:
        skipped = piece.shape == (0,)  # PyTorch lets an empty vector stand among matrices
        length = 0 if skipped else piece.shape[dim]
        gradients.append(None if skipped else dz.narrow(dim, start, length))
        start += length
    return gradients


@rule("native_dropout", formula="dz/dx = z1 / (1 - p)", reads=linear)
def native_dropout(dz, x, p, *, zs, train=True):
    return dz * zs[1] / (1 - p) if p < 1 else dz * 0


# 5. Sums: every term gets the whole gradient of its sum.


@rule("sum", formula="dz/dx[i] = 1", reads=along())
def sum(dz, x, *, dim=None, keepdim=False):
    return widened(dz, x, dim, keepdim).expand_as(x)


@rule("mean", formula="dz/dx[i] = 1 / len(x)", reads=along())
def mean(dz, x, *, dim=None, keepdim=False):
    return widened(dz, x, dim, keepdim).expand_as(x) / count(x, dim)


# 6. Matrix products z = x @ w: almost all the work of a network is here. Row i of x and column j of w meet in z_ij, so
#    an element of x meets a whole row of w: the gradients are matrix products again, the other factor transposed.


@rule("mm", formula="dz[i,j]/dx[k,l] = [i=k] * w[l,j]; dz[i,j]/dw[k,l] = [j=l] * x[i,k]", reads=product("ik kj -> ij"))
def mm(dz, x, w):
    return dz @ w.T, x.T @ dz


@rule(
    "addmm",
    formula="dz/db = beta; dz[i,j]/dx[k,l] = alpha * [i=k] * w[l,j]; dz[i,j]/dw[k,l] = alpha * [j=l] * x[i,k]",
    reads=product("* ik kj -> ij"),
)
def addmm(dz, b, x, w, *, beta=1, alpha=1):
    return dz * beta, alpha * dz @ w.T, alpha * x.T @ dz


@rule(
    "bmm",
    formula="dz[n,i,j]/dx[m,k,l] = [n=m and i=k] * w[n,l,j]; dz[n,i,j]/dw[m,k,l] = [n=m and j=l] * x[n,i,k]",
    reads=product("nik nkj -> nij"),
)
def bmm(dz, x, w):
    return dz @ w.mT, x.mT @ dz


# 7. Looking up row `index` of a table: each row collects the gradients of all places where it was used.


@rule("embedding", formula="dz[i,j]/dw[k,l] = [k = index[i] and k != padding_idx] * [j=l]", reads=moved)
def embedding(dz, w, index, *, padding_idx=-1, scale_grad_by_freq=False):
    rows, gradients = index.reshape(-1), dz.reshape(index.numel(), *w.shape[1:])
    gradients = gradients.masked_fill((rows == padding_idx)[:, None], 0)
    if scale_grad_by_freq:
        gradients = gradients / rows.bincount(minlength=len(w))[rows][:, None]
    return torch.zeros_like(w).index_add(0, rows, gradients.to(w.dtype))


# 8. Normalisation: a row is moved and scaled by its own statistics, so each element also speaks through those. They are
#    the further outputs: the mean z1 and the reciprocal deviation z2. (RMSNorm is made of pow, mean, rsqrt and mul.)


@rule(
    "native_layer_norm",
    formula="dz[i]/dx[j] = w[i] * z2[0] * ([i=j] - (1 + (x[i] - z1[0]) * (x[j] - z1[0]) * z2[0]**2) / len(x));"
    " dz[i]/dw[j] = [i=j] * (x[i] - z1[0]) * z2[0]; dz[i]/db[j] = [i=j]",
    reads=last_dims("normalized_shape"),
)
def native_layer_norm(dz, x, w, b, *, normalized_shape, eps):
    dims = list(range(-len(normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    r = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    h = centred * r
    dh = dz if w is None else dz * w
    dx = r * (dh - dh.mean(dims, keepdim=True) - h * (dh * h).mean(dims, keepdim=True))
    return dx, dz * h, dz


# 9. Softmax: the elements of a row compete for a sum of 1, so raising one lowers all others.


@rule("_softmax", "_safe_softmax", formula="dz[i]/dx[j] = z[i] * ([i=j] - z[j])", reads=along())
def softmax(dz, x, *, z, dim):
    return z * (dz - (dz * z).sum(dim, keepdim=True))


@rule("_log_softmax", formula="dz[i]/dx[j] = [i=j] - exp(z[j])", reads=along())
def log_softmax(dz, x, *, z, dim):
    return dz - z.exp() * dz.sum(dim, keepdim=True)


# 10. The loss of a language model: minus the log-probability of the token that really came, averaged over the tokens
#     that count (their number, or summed weight, is the second output z1).


@rule("nll_loss_forward", formula="dz/dx[i,c] = -[c = target[i] and target[i] != ignore_index] / z1", reads=linear)
def nll_loss(dz, x, *, target, weight=None, reduction=1, ignore_index=-100):
    counted = target != ignore_index
    token = target.where(counted, 0)
    share = counted.to(x.dtype) if weight is None else weight[token] * counted
    if reduction == 1:
        share = torch.where(counted, share / share.sum(), 0.0)
    return torch.zeros_like(x).scatter(-1, token.unsqueeze(-1), (-dz * share).unsqueeze(-1))


# 11. Attention in one kernel. Its matrix of probabilities never is in memory; here it is computed again, in parts:
#     scores s = scale * q k^T, probabilities p = softmax(s), output z = p v. Two products and a softmax, walked
#     backwards. A value is used as much as it is attended to; a score matters by how much better its value serves than
#     the row's average: dz_i/ds_ij = p_ij (v_j - z_i).


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    formula=attention_formula(),
    reads=attended,
)
def attention(dz, q, k, v, *, is_causal=False, attn_mask=None, scale=None, dropout_p=0.0):
    dq, dk, dv, _ = attention_backward(dz, q, k, v, is_causal, attn_mask, scale, dropout_p)
    return dq, dk, dv


@rule(
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    formula=attention_formula(bias="b"),
    reads=attended,
)
def biased_attention(dz, q, k, v, b, *, is_causal=False, scale=None, dropout_p=0.0):
    return attention_backward(dz, q, k, v, is_causal, b, scale, dropout_p)


def attention_backward(dz, q, k, v, is_causal, mask, scale, dropout_p):
    """Gradients of queries (B, H, T, D), keys and values (B, G, S, D), H a multiple of G, and scores (B, H, T, S)."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    groups, shared = k.shape[1], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    p = attention_scores(q, k, is_causal, mask, scale, dropout_p).softmax(-1).nan_to_num(0.0)  # nan: nothing to see
    dv, dp = p.mT @ dz, dz @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True))
    dq, dk = scale * ds @ k, scale * ds.mT @ q
    dk, dv = (gradient.unflatten(1, (groups, shared)).sum(2) for gradient in (dk, dv))
    return dq, dk, dv, ds


# The table goes on by families; importing a file enters its rows.

from lightwell.glass import (  # noqa: E402
    replays,  # noqa: F401
    rules_activations,  # noqa: F401
    rules_arithmetic,  # noqa: F401
    rules_convolution,  # noqa: F401
    rules_flat,  # noqa: F401
    rules_indexing,  # noqa: F401
    rules_linear_algebra,  # noqa: F401
    rules_losses,  # noqa: F401
    rules_normalisation,  # noqa: F401
    rules_reductions,  # noqa: F401
    rules_shape,  # noqa: F401
)
