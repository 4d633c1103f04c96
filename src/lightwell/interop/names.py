"""Whose tensor is whose: our names and HuggingFace's, one table per family, read in both directions.

`{n}` is the layer. A tuple on the right: our one matrix holds those rows, one after the other. GPT-2's published code
stores the four matrices of a block as (inputs, outputs), the transpose of a linear layer's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.errors import FormatError

Names = dict[str, str | tuple[str, ...]]

GPT2: Names = {
    "tok_emb.weight": "transformer.wte.weight",
    "pos_emb.weight": "transformer.wpe.weight",
    "blocks.{n}.norm1.weight": "transformer.h.{n}.ln_1.weight",
    "blocks.{n}.norm1.bias": "transformer.h.{n}.ln_1.bias",
    "blocks.{n}.attn.qkv.weight": "transformer.h.{n}.attn.c_attn.weight",
    "blocks.{n}.attn.qkv.bias": "transformer.h.{n}.attn.c_attn.bias",
    "blocks.{n}.attn.out.weight": "transformer.h.{n}.attn.c_proj.weight",
    "blocks.{n}.attn.out.bias": "transformer.h.{n}.attn.c_proj.bias",
    "blocks.{n}.norm2.weight": "transformer.h.{n}.ln_2.weight",
    "blocks.{n}.norm2.bias": "transformer.h.{n}.ln_2.bias",
    "blocks.{n}.mlp.up.weight": "transformer.h.{n}.mlp.c_fc.weight",
    "blocks.{n}.mlp.up.bias": "transformer.h.{n}.mlp.c_fc.bias",
    "blocks.{n}.mlp.down.weight": "transformer.h.{n}.mlp.c_proj.weight",
    "blocks.{n}.mlp.down.bias": "transformer.h.{n}.mlp.c_proj.bias",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
QWEN3: Names = {
    "tok_emb.weight": "model.embed_tokens.weight",
    "blocks.{n}.norm1.weight": "model.layers.{n}.input_layernorm.weight",
    "blocks.{n}.attn.qkv.weight": (
        "model.layers.{n}.self_attn.q_proj.weight",
        "model.layers.{n}.self_attn.k_proj.weight",
        "model.layers.{n}.self_attn.v_proj.weight",
    ),
    "blocks.{n}.attn.q_norm.weight": "model.layers.{n}.self_attn.q_norm.weight",
    "blocks.{n}.attn.k_norm.weight": "model.layers.{n}.self_attn.k_norm.weight",
    "blocks.{n}.attn.out.weight": "model.layers.{n}.self_attn.o_proj.weight",
    "blocks.{n}.norm2.weight": "model.layers.{n}.post_attention_layernorm.weight",
    "blocks.{n}.mlp.gate.weight": "model.layers.{n}.mlp.gate_proj.weight",
    "blocks.{n}.mlp.up.weight": "model.layers.{n}.mlp.up_proj.weight",
    "blocks.{n}.mlp.down.weight": "model.layers.{n}.mlp.down_proj.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_TRANSPOSED = ("attn.qkv.weight", "attn.out.weight", "mlp.up.weight", "mlp.down.weight")


def pairs(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(our name, their names) for every tensor of a model that is stored: a tied head is stored once."""
    for ours, theirs in (GPT2 if isinstance(config, GPTConfig) else QWEN3).items():
        if ours == "head.weight" and config.tie_embeddings:
            continue
        names = (theirs,) if isinstance(theirs, str) else theirs
        for n in range(config.n_layers if "{n}" in ours else 1):
            yield ours.format(n=n), tuple(name.format(n=n) for name in names)


def to_theirs(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under their names. A missing qkv bias becomes zeros: their GPT-2 always has one."""
    found = {}
    for ours, theirs in pairs(config):
        if ours.endswith("qkv.bias") and ours not in state:
            found[theirs[0]] = torch.zeros(3 * config.emb_dim)
            continue
        tensor = state[ours].detach().cpu().float()
        if _is_transposed(config, ours):
            tensor = tensor.T
        parts = tensor.split(_rows(config)) if len(theirs) > 1 else (tensor,)
        found |= {name: part.contiguous() for name, part in zip(theirs, parts)}
    return found


def to_ours(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors as our state dict, in float32. Raises FormatError for one that is missing, unknown or misshapen."""
    left = dict(tensors)
    found = {}
    for ours, theirs in pairs(config):
        missing = [name for name in theirs if name not in left]
        if missing:
            raise FormatError(f"expected the tensor {missing[0]} in the model's files, found none.")
        parts = [left.pop(name) for name in theirs]
        if ours.endswith("qkv.bias") and isinstance(config, GPTConfig) and not config.qkv_bias:
            if parts[0].any():
                raise FormatError(f"expected {theirs[0]} to be zeros, as its config says, got other numbers.")
            continue
        tensor = torch.cat(parts).float()
        found[ours] = tensor.T.contiguous() if _is_transposed(config, ours) else tensor
    left.pop("lm_head.weight", None)  # a tied head that was stored twice
    if left:
        raise FormatError(f"expected the tensors of a {config.family} model, got {sorted(left)[0]} besides.")
    return found


def _is_transposed(config: ModelConfig, name: str) -> bool:
    return isinstance(config, GPTConfig) and name.endswith(_TRANSPOSED)


def _rows(config: ModelConfig) -> list[int]:
    """Rows of queries, keys and values."""
    assert isinstance(config, ModernConfig)
    queries, keys = config.n_heads * config.size_per_head, config.kv_heads * config.size_per_head
    return [queries, keys, keys]
