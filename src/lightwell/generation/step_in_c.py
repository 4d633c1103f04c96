"""One new token for one text through the model in C: `model/kernels/one_token.c`, with this model's numbers.

`step.py` is its twin, and goes on wherever this one does not apply: several texts at once, other devices and dtypes
(autocast too), a machine without a compiler, a part of the model that is not the usual one. All is computed in float32,
from weights in float32, bfloat16 or 8 bits; what meets weights in bfloat16 is rounded as `quantize.py` has it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightwell.generation.mode import Model
from lightwell.generation.quantize import BF16Linear, Int8Linear
from lightwell.model import gpt2, modern
from lightwell.model.cache import KVCache, key_heads
from lightwell.model.kernels.build import library
from lightwell.model.norms import RMSNorm

FLOAT32, BFLOAT16, INT8 = range(3)


class Matrix(ctypes.Structure):
    """As in one_token.c, like those that follow."""

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
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
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

    None where it cannot be had. The blocks, attentions and MLPs must be the ones that the model's file defines
    (`step.py` looks); their parts are looked at here. The weights are those of now: later ones need another step.
    """
    if model.device.type != "cpu" or (kernels := library()) is None:
        return None
    kept, (G, D) = _Kept(), key_heads(model.config)
    C, H = model.config.emb_dim, model.config.n_heads
    layers = (Layer * model.config.n_layers)()
    try:
        F = kept.matrix(model.blocks[0].get_submodule("mlp.up"), None, C).n
        shapes = {"qkv": ((H + 2 * G) * D, C), "out": (C, H * D), "gate": (F, C), "up": (F, C), "down": (C, F)}
        for layer, block in zip(layers, model.blocks):
            parts = dict(block.named_modules())
            for field, name in NORMS.items():
                setattr(layer, field, kept.norm(parts[name], D if "attn" in name else C) if name in parts else Norm())
            for field, name in MATRICES.items():
                setattr(layer, field, kept.matrix(parts[name], *shapes[field]) if name in parts else Matrix())
        final_norm, head = kept.norm(model.final_norm, C), kept.matrix(model.head, None, C)
        tok_emb = kept.embedding(model.tok_emb)
        pos_emb, theta = None, 0.0
        if isinstance(model, gpt2.GPT2):
            pos_emb = kept.embedding(model.pos_emb)
        else:
            theta = model.config.rope_theta
    except _OtherPart:
        return None
    kept.whole = WholeModel(C, H, G, D, 0, len(layers), layers, final_norm, head)
    space = torch.empty(C + (2 * H + 2 * G) * D + 2 * F, dtype=torch.float32, device="cpu")
    filled_in: Tensor | None = None  # the keys that `layers` point to

    def step(ids: Tensor, cache: KVCache) -> Tensor:
        nonlocal filled_in
        if filled_in is not cache.keys:
            _fill_in_cache(kept.whole, layers, cache)
            filled_in = cache.keys
        S, position = cache.length, torch.tensor([[cache.length]], device="cpu")
        x = tok_emb[ids[0, 0]].clone()  # (C,)
        cos = sin = None
        if pos_emb is not None:
            x += pos_emb[S]
        else:
            cos, sin = modern.rotation(position, D, theta, torch.float32)
        logits = torch.empty(1, head.n, dtype=torch.float32, device="cpu")
        kernels.one_token(
            ctypes.byref(kept.whole), _at(x), _at(cos), _at(sin), ctypes.c_long(S), _at(logits), _at(space),
            ctypes.c_int(torch.get_num_threads()),
        )  # fmt: skip
        cache.advance(1)
        return logits

    return step


class _OtherPart(Exception):
    """A part that C does not know, or in numbers that it does not."""


class _Kept:
    """A model for C, and the tensors whose addresses it has: they stay where they are for as long as this does,
    whatever becomes of the modules that they are from."""

    whole: WholeModel

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def tensor(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        if tensor.dtype != dtype or not tensor.is_contiguous():
            raise _OtherPart
        self.tensors.append(tensor.detach())
        return self.tensors[-1]

    def at(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> ctypes.c_void_p:
        return _at(None if tensor is None else self.tensor(tensor, dtype))

    def matrix(self, part: nn.Module, n: int | None = None, k: int | None = None) -> Matrix:
        """The product of a linear layer of the shape (n, k), where these are known."""
        scale = None
        if type(part) is BF16Linear:
            weight, kind, dtype = part.rounded, BFLOAT16, torch.bfloat16
        elif type(part) is Int8Linear:
            weight, scale, kind, dtype = part.q, part.scale, INT8, torch.int8
        elif isinstance(part, nn.Linear) and type(part).forward is nn.Linear.forward:
            weight, kind, dtype = part.weight, FLOAT32, torch.float32
        else:
            raise _OtherPart
        if n not in (None, weight.shape[0]) or k not in (None, weight.shape[1]):
            raise _OtherPart
        return Matrix(self.at(weight, dtype), self.at(scale), self.at(part.bias), *weight.shape, kind)

    def norm(self, part: nn.Module, n: int) -> Norm:
        """RMSNorm or, with a bias, by which C tells them, LayerNorm over `n` numbers."""
        if type(part) is RMSNorm:
            weight, bias = part.weight, None
        elif type(part) is nn.LayerNorm and part.bias is not None:
            weight, bias = part.weight, part.bias
        else:
            raise _OtherPart
        if weight.numel() != n:
            raise _OtherPart
        return Norm(self.at(weight), self.at(bias), part.eps)

    def embedding(self, part: nn.Module) -> Tensor:
        if isinstance(part, nn.Embedding) and type(part).forward is nn.Embedding.forward and part.max_norm is None:
            return self.tensor(part.weight)
        raise _OtherPart


def _fill_in_cache(whole: WholeModel, layers: ctypes.Array[Layer], cache: KVCache) -> None:
    whole.L = cache.max_length
    for number, layer in enumerate(layers):
        layer.keys, layer.values = _at(cache.keys[number]), _at(cache.values[number])


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
