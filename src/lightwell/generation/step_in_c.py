"""One new token for one text through the model in C: `model/kernels/one_token.c`, with this model's numbers.

`step.py` is its twin, and goes on wherever this one does not apply: several texts at once, other devices and dtypes, a
machine without a compiler, a part of the model that is not the usual one. All is computed in float32, from weights in
float32, bfloat16 or 8 bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightwell.generation.mode import Model
from lightwell.generation.quantize import BF16Linear, Int8Linear
from lightwell.model import gpt2, modern
from lightwell.model.cache import KVCache
from lightwell.model.kernels.build import library
from lightwell.model.norms import RMSNorm

FLOAT32, BFLOAT16, INT8 = range(3)


class Numbers(ctypes.Structure):
    """As in numbers.h."""

    _fields_ = (("at", ctypes.c_void_p), ("half", ctypes.c_int))


class Matrix(ctypes.Structure):
    """As in one_token.c, like all that follow."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("at", "scale", "bias")),
        *((name, ctypes.c_long) for name in ("n", "k")),
        ("kind", ctypes.c_int),
    )


class Norm(ctypes.Structure):
    _fields_ = (("gain", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


class Layer(ctypes.Structure):
    _fields_ = (
        *((name, Norm) for name in ("norm1", "q_norm", "k_norm", "norm2")),
        *((name, Matrix) for name in ("qkv", "out", "gate", "up", "down")),
        *((name, Numbers) for name in ("keys", "values")),
    )


class WholeModel(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("C", "H", "G", "D", "L", "n_layers")),
        ("layers", ctypes.POINTER(Layer)),
        ("norm", Norm),
        ("head", Matrix),
    )


NORMS = {"norm1": "norm1", "norm2": "norm2", "q_norm": "attn.q_norm", "k_norm": "attn.k_norm"}
MATRICES = {"qkv": "attn.qkv", "out": "attn.out", "gate": "mlp.gate", "up": "mlp.up", "down": "mlp.down"}


def step_in_c(model: Model) -> Callable[[Tensor, KVCache], Tensor] | None:
    """A function of `ids` (1, 1) int64 and a cache without padding to the logits (1, V) of the token that follows.

    None where it cannot be had. The model's modules must be the ones that its file defines (`step.py` looks).
    """
    kernels = library()
    if kernels is None or model.device.type != "cpu":
        return None
    config, (H, G, D) = model.config, _heads(model)
    layers = (Layer * config.n_layers)()
    try:
        for layer, block in zip(layers, model.blocks):
            parts = dict(block.named_modules())
            for field, name in NORMS.items():
                setattr(layer, field, _norm(parts[name]) if name in parts else Norm())
            for field, name in MATRICES.items():
                setattr(layer, field, _matrix(parts[name]) if name in parts else Matrix())
        final_norm, head = _norm(model.final_norm), _matrix(model.head)
    except _OtherPart:
        return None
    whole = WholeModel(config.emb_dim, H, G, D, 0, config.n_layers, layers, final_norm, head)
    space = torch.empty(2 * config.emb_dim + (2 * H + 2 * G) * D + 2 * layers[0].up.n)
    filled_in: Tensor | None = None  # the keys that `layers` point to

    def step(ids: Tensor, cache: KVCache) -> Tensor:
        nonlocal filled_in
        if filled_in is not cache.keys:
            _fill_in_cache(whole, layers, cache)
            filled_in = cache.keys
        S, position = cache.length, torch.tensor([[cache.length]])
        x = model.tok_emb.weight[ids[0, 0]].clone()  # (C,)
        cos = sin = None
        if isinstance(model, gpt2.GPT2):
            x += model.pos_emb.weight[S]
        else:
            cos, sin = modern.rotation(position, D, model.config.rope_theta, torch.float32)
        logits = torch.empty(1, head.n)
        kernels.one_token(
            ctypes.byref(whole), _at(x), _at(cos), _at(sin), ctypes.c_long(S), _at(logits), _at(space),
            ctypes.c_int(torch.get_num_threads()),
        )  # fmt: skip
        cache.advance(1)
        return logits

    return step


class _OtherPart(Exception):
    """A part that C does not know, or in numbers that it does not."""


def _heads(model: Model) -> tuple[int, int, int]:
    """H, G and D."""
    if isinstance(model, gpt2.GPT2):
        return model.config.n_heads, model.config.n_heads, model.config.head_dim
    return model.config.n_heads, model.config.kv_heads, model.config.size_per_head


def _fill_in_cache(whole: WholeModel, layers: ctypes.Array[Layer], cache: KVCache) -> None:
    whole.L = cache.max_length
    for number, layer in enumerate(layers):
        for field, all_layers in (("keys", cache.keys), ("values", cache.values)):
            setattr(layer, field, Numbers(all_layers[number].data_ptr(), all_layers.dtype == torch.bfloat16))


def _matrix(part: nn.Module) -> Matrix:
    scale = None
    if isinstance(part, BF16Linear):
        weight, kind = part.rounded, BFLOAT16
    elif isinstance(part, Int8Linear):
        weight, scale, kind = part.q, part.scale, INT8
    elif isinstance(part, nn.Linear) and type(part).forward is nn.Linear.forward:
        weight, kind = part.weight, FLOAT32
    else:
        raise _OtherPart
    dtypes = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, INT8: torch.int8}
    if weight.dtype != dtypes[kind] or not weight.is_contiguous():
        raise _OtherPart
    return Matrix(_at(weight), _at(scale), _at(part.bias), *weight.shape, kind)


def _norm(part: nn.Module) -> Norm:
    weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
    known = isinstance(part, RMSNorm) or (isinstance(part, nn.LayerNorm) and bias is not None)  # C tells them by it
    if known and weight is not None and weight.dtype == torch.float32:
        return Norm(_at(weight), _at(bias), part.eps)
    raise _OtherPart


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
