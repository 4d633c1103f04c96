"""Parts of a training step on a CPU, each in one pass over memory: fast twins of what the model's files say in PyTorch.

    rms_norm                 F.rms_norm
    heads                    split, RMSNorm of queries and keys, rotate
    attend                   F.scaled_dot_product_attention(q, k, v, is_causal=True)
    swiglu                   F.silu(gate) * up
    gelu                     F.gelu(x, approximate="tanh")
    softmax_less_target      softmax, loss and its gradient at the logits

The training step and the evaluations of a run switch them on (`fused`); everything else, and so all that is looked at
and verified, runs the plain form. They know one derivative, are not for `torch.compile`, and give the plain form's
values but for rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightwell.model.kernels.build import library

PARTS = 16  # in which sums over rows are made, as in rows.c
BLOCKS = {torch.float32: 128, torch.bfloat16: 256}  # queries at a time of attention by products
SHORT, KEPT = 1024, 2**26  # tokens, and weights (B, H, T, T), up to which it keeps them
LONGEST = 250_000  # numbers of a row, of which C keeps up to three on its stack
_on = ContextVar("fused", default=False)  # of this thread


@contextmanager
def fused(wanted: bool = True) -> Iterator[None]:
    """Within this context the model takes the fast twins, where they can be had."""
    before = _on.set(wanted)
    try:
        yield
    finally:
        _on.reset(before)


def usable(*alike: Tensor, gains: tuple[Tensor, ...] = ()) -> bool:
    """Whether the fast twins may be taken for these: switched on, on a CPU, of one shape and dtype, float32 or bfloat16
    as the products that follow are. `gains`, of which C has nothing but the address, in float32 without gaps."""
    first = alike[0]
    return (
        not torch.compiler.is_compiling()
        and _on.get()
        and first.shape[-1] <= LONGEST
        and first.dtype in BLOCKS
        and _product_dtype(first) in BLOCKS
        and all(t.device.type == "cpu" and t.dtype == first.dtype and t.shape == first.shape for t in alike)
        and all(g.device.type == "cpu" and g.dtype == torch.float32 and g.is_contiguous() for g in gains)
        and library() is not None  # last: it is built when it is first asked for, and a GPU needs none
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension of `x`; the result in the dtype of the products that follow."""
    return _RMSNorm.apply(x, weight, eps)


def heads(
    qkv: Tensor, w_q: Tensor, w_k: Tensor, cos: Tensor, sin: Tensor, eps: float, sizes: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, T, D), keys and values (B, G, T, D) from `qkv` (B, T, (H + 2 G) D): the first two normalised with
    gains `w_q`, `w_k` (D,) and rotated by the angles of cos, sin (T, D / 2). sizes: H, G."""
    return _Heads.apply(qkv, w_q, w_k, cos, sin, eps, sizes)


def attends(q: Tensor) -> bool:
    """Whether `attend` is faster than PyTorch's attention for queries (B, H, T, D): in float32 with at least one head
    for each thread, and otherwise for short windows."""
    B, H, T, _ = q.shape
    return _in_c(B * H, q.dtype) or keeps_weights(B, H, T, q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, all (B, H, T, D) of one dtype: in float32 in C, a head in each thread; in bfloat16 as products
    of matrices, which processors with matrix units are made for, and up to (B, H, T, T) weights are kept."""
    return (_Attention if _in_c(q.shape[0] * q.shape[1], q.dtype) else _AttentionByProducts).apply(q, k, v)


def keeps_weights(B: int, H: int, T: int, dtype: torch.dtype) -> bool:
    """Whether our own attention is one that keeps its weights."""
    return not _in_c(B * H, dtype) and T <= SHORT and B * H * T * T <= KEPT


def kept_weights(T: int, dtype: torch.dtype) -> int:
    """Bytes of the weights that are kept for each head of a sequence of T tokens."""
    return dtype.itemsize * sum((rows.stop - rows.start) * rows.stop for rows in _blocks(T, BLOCKS[dtype]))


def _in_c(heads: int, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and heads >= torch.get_num_threads()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all of one shape and dtype."""
    return _SwiGLU.apply(gate, up)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return _GELU.apply(x)


def softmax_less_target(logits: Tensor, targets: Tensor) -> Tensor:
    """Changes `logits` (R, V) into softmax(logits) less 1 at `targets` (R,), zeros where that is -100, and returns the
    losses of the rows (R,), in nats, float32; NaN where there is no such target."""
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    _call("softmax_less_target", _numbers(logits), targets.long().contiguous(), losses, *logits.shape)
    return losses


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        n = x.shape[-1]
        y, r = torch.empty_like(x, dtype=_product_dtype(x)), x.new_empty(x.shape[:-1], dtype=torch.float32)
        _call("rms_norm", _numbers(x), weight, ctypes.c_float(eps), _numbers(y), r, x.numel() // n, n)
        ctx.save_for_backward(x, r, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r, weight = ctx.saved_tensors
        n, g = x.shape[-1], g.contiguous()
        d_x, d_weight = torch.empty_like(x), weight.new_zeros(PARTS, n)
        _call("rms_norm_backward", _numbers(g), _numbers(x), r, weight, _numbers(d_x), d_weight, x.numel() // n, n)
        return d_x, d_weight.sum(0), None


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, w_q: Tensor, w_k: Tensor, cos: Tensor, sin: Tensor, eps: float, sizes: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        (B, T, _), (H, G), D = qkv.shape, sizes, len(w_q)
        qkv = qkv.contiguous()
        if (qkv.shape[-1], len(w_k)) != ((H + G + G) * D, D):
            raise ValueError(f"expected {H + G + G} heads of {D} numbers, got {qkv.shape[-1]} and gains of {len(w_k)}")
        q, k, v = (qkv.new_empty(B, n, T, D, dtype=_product_dtype(qkv)) for n in (H, G, G))
        r = qkv.new_empty(B, T, H + G, dtype=torch.float32)
        written = [_numbers(tensor) for tensor in (q, k, v)]
        _call("heads", _numbers(qkv), w_q, w_k, cos, sin, ctypes.c_float(eps), *written, r, B, T, H, G, D)
        ctx.save_for_backward(qkv, r, w_q, w_k, cos, sin)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, r, w_q, w_k, cos, sin = ctx.saved_tensors
        (B, T, _), (_, H, _, D), G = qkv.shape, gradients[0].shape, gradients[1].shape[1]
        gradients = tuple(g.contiguous() for g in gradients)
        d_qkv, d_q, d_k = torch.empty_like(qkv), w_q.new_zeros(PARTS, D), w_k.new_zeros(PARTS, D)
        read = [_numbers(tensor) for tensor in (*gradients, qkv)]
        _call("heads_backward", *read, r, w_q, w_k, cos, sin, _numbers(d_qkv), d_q, d_k, B, T, H, G, D)
        return d_qkv, d_q.sum(0), d_k.sum(0), None, None, None, None


class _Attention(torch.autograd.Function):
    """Keeps no weights, but the logarithm of the sum that softmax divides by."""

    @staticmethod
    def forward(ctx: Any, *heads: Tensor) -> Tensor:
        q, k, v = (_by_tokens(head) for head in heads)
        B, H, T, D = q.shape
        y = q.new_empty(B, T, H, D).transpose(1, 2)  # as the product that follows reads it
        logsum = q.new_empty(B, H, T)
        passed = [_strided(tensor) for tensor in (q, k, v, y)]
        _call("attention", *passed, logsum, *_scale_and_sizes(q), _room(T, D))
        ctx.save_for_backward(q, k, v, y, logsum)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        q, k, v, y, logsum = ctx.saved_tensors
        _, _, T, D = q.shape
        gradients = tuple(torch.empty_like(head) for head in (q, k, v))
        read, written = ([_strided(t) for t in tensors] for tensors in ((_by_tokens(g), q, k, v, y), gradients))
        _call("attention_backward", *read, logsum, *_scale_and_sizes(q), *written, _room(T, D))
        return gradients


class _AttentionByProducts(torch.autograd.Function):
    """Some queries at a time, against the keys up to the last of them: what comes later is not computed."""

    @staticmethod
    def forward(ctx: Any, *heads: Tensor) -> Tensor:
        shape, scale = heads[0].shape, heads[0].shape[-1] ** -0.5
        q, k, v = (head.reshape(-1, *shape[2:]) for head in heads)  # (B H, T, D)
        y, kept = torch.empty_like(q), []
        with torch.autocast("cpu", enabled=False):
            for rows in _blocks(q.shape[1], BLOCKS[q.dtype]):
                weights = q[:, rows] @ k[:, : rows.stop].mT
                _call("causal_softmax", _numbers(weights), ctypes.c_float(scale), *weights.shape)
                y[:, rows] = weights @ v[:, : rows.stop]
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        return y.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *kept = ctx.saved_tensors
        shape, scale = g.shape, q.shape[-1] ** -0.5
        g, d_q = g.reshape(q.shape), torch.empty_like(q)
        d_k, d_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            for rows, weights in zip(_blocks(q.shape[1], BLOCKS[q.dtype]), kept):
                seen = slice(rows.stop)
                d_scores = g[:, rows] @ v[:, seen].mT
                written = _numbers(weights), _numbers(d_scores)
                d_v[:, seen] += weights.mT @ g[:, rows]
                _call("causal_softmax_backward", *written, ctypes.c_float(scale), *weights.shape)
                d_q[:, rows] = d_scores @ k[:, seen]
                d_k[:, seen] += d_scores.mT @ q[:, rows]
        return d_q.view(shape), d_k.to(k.dtype).view(shape), d_v.to(v.dtype).view(shape)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        y, n = torch.empty_like(gate), gate.shape[-1]
        _call("swiglu", _numbers(gate), _numbers(up), _numbers(y), gate.numel() // n, n)
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        g, n = g.contiguous(), gate.shape[-1]
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        read = [_numbers(tensor) for tensor in (g, gate, up, d_gate, d_up)]
        _call("swiglu_backward", *read, gate.numel() // n, n)
        return d_gate, d_up


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y, n = torch.empty_like(x), x.shape[-1]
        _call("gelu", _numbers(x), _numbers(y), x.numel() // n, n)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        g, n = g.contiguous(), x.shape[-1]
        d_x = torch.empty_like(x)
        _call("gelu_backward", _numbers(g), _numbers(x), _numbers(d_x), g.numel() // n, n)
        return d_x


class _Numbers(ctypes.Structure):
    """An array that may be bfloat16, as rows.c has it."""

    _fields_ = (("at", ctypes.c_void_p), ("half", ctypes.c_int))


def _numbers(tensor: Tensor) -> _Numbers:
    return _Numbers(tensor.data_ptr(), tensor.dtype == torch.bfloat16)


def _call(name: str, *arguments: Any) -> None:
    """A function in C with the threads that PyTorch has: tensors are passed by address, numbers as C's long."""
    kernels = library()
    assert kernels is not None
    passed = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_long(a) if isinstance(a, int) else a
        for a in arguments
    ]
    getattr(kernels, name)(*passed, ctypes.c_int(torch.get_num_threads()))


class _Strided(ctypes.Structure):
    """What attention.c calls Heads: where they begin, and how far sequences, heads and tokens are apart, in numbers."""

    _fields_ = (("at", ctypes.c_void_p), *((of, ctypes.c_long) for of in ("batch", "head", "token")))


class _Sizes(ctypes.Structure):
    _fields_ = tuple((of, ctypes.c_long) for of in "BHTD")


def _strided(heads: Tensor) -> _Strided:
    return _Strided(heads.data_ptr(), *heads.stride()[:3])


def _by_tokens(heads: Tensor) -> Tensor:
    """With the numbers of each token side by side."""
    return heads if heads.stride(-1) == 1 else heads.contiguous()


def _scale_and_sizes(q: Tensor) -> tuple[ctypes.c_float, _Sizes]:
    return ctypes.c_float(q.shape[-1] ** -0.5), _Sizes(*q.shape)


def _room(T: int, D: int) -> Tensor:
    """For attention.c to work in."""
    kernels = library()
    assert kernels is not None
    kernels.attention_room.restype = ctypes.c_long
    each = kernels.attention_room(ctypes.c_long(T), ctypes.c_long(D))
    return torch.empty(torch.get_num_threads(), each, dtype=torch.float32, device="cpu")  # whatever the defaults are


def _blocks(T: int, some: int) -> list[slice]:
    """Of T queries, in `_AttentionByProducts`."""
    return [slice(at, min(at + some, T)) for at in range(0, T, some)]


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the products that follow: autocast's, or that of `x`."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
