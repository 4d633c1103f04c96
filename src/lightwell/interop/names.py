"""The names that weights have here and in transformers, one table per family, read in both directions.

`{n}` is the number of a block. A row may say that the matrix is transposed over there (GPT-2's `Conv1D` keeps (in, out)
where torch's Linear keeps (out, in)), or that one of ours is several of theirs, one below the other.
Sources: GPT2LMHeadModel and Qwen3ForCausalLM in transformers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lightwell.config.gpt import GPTConfig, ModelConfig
from lightwell.errors import FormatError
from lightwell.model.count import qkv_rows

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One weight: its name here, and there."""

    ours: str
    theirs: str | tuple[str, ...]
    transposed: bool = False

    def in_block(self, n: int) -> Row:
        parts = tuple(name.replace("{n}", str(n)) for name in self.all_theirs)
        return Row(self.ours.replace("{n}", str(n)), parts, self.transposed)

    @property
    def all_theirs(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


GPT2 = (
    Row("tok_emb.weight", "transformer.wte.weight"),
    Row("pos_emb.weight", "transformer.wpe.weight"),
    Row("blocks.{n}.norm1.weight", "transformer.h.{n}.ln_1.weight"),
    Row("blocks.{n}.norm1.bias", "transformer.h.{n}.ln_1.bias"),
    Row("blocks.{n}.attn.qkv.weight", "transformer.h.{n}.attn.c_attn.weight", transposed=True),
    Row("blocks.{n}.attn.qkv.bias", "transformer.h.{n}.attn.c_attn.bias"),
    Row("blocks.{n}.attn.out.weight", "transformer.h.{n}.attn.c_proj.weight", transposed=True),
    Row("blocks.{n}.attn.out.bias", "transformer.h.{n}.attn.c_proj.bias"),
    Row("blocks.{n}.norm2.weight", "transformer.h.{n}.ln_2.weight"),
    Row("blocks.{n}.norm2.bias", "transformer.h.{n}.ln_2.bias"),
    Row("blocks.{n}.mlp.up.weight", "transformer.h.{n}.mlp.c_fc.weight", transposed=True),
    Row("blocks.{n}.mlp.up.bias", "transformer.h.{n}.mlp.c_fc.bias"),
    Row("blocks.{n}.mlp.down.weight", "transformer.h.{n}.mlp.c_proj.weight", transposed=True),
    Row("blocks.{n}.mlp.down.bias", "transformer.h.{n}.mlp.c_proj.bias"),
    Row("final_norm.weight", "transformer.ln_f.weight"),
    Row("final_norm.bias", "transformer.ln_f.bias"),
    Row("head.weight", "lm_head.weight"),
)
QWEN3 = (
    Row("tok_emb.weight", "model.embed_tokens.weight"),
    Row("blocks.{n}.norm1.weight", "model.layers.{n}.input_layernorm.weight"),
    Row("blocks.{n}.attn.qkv.weight", (
        "model.layers.{n}.self_attn.q_proj.weight",
        "model.layers.{n}.self_attn.k_proj.weight",
        "model.layers.{n}.self_attn.v_proj.weight",
    )),
    Row("blocks.{n}.attn.q_norm.weight", "model.layers.{n}.self_attn.q_norm.weight"),
    Row("blocks.{n}.attn.k_norm.weight", "model.layers.{n}.self_attn.k_norm.weight"),
    Row("blocks.{n}.attn.out.weight", "model.layers.{n}.self_attn.o_proj.weight"),
    Row("blocks.{n}.norm2.weight", "model.layers.{n}.post_attention_layernorm.weight"),
    Row("blocks.{n}.mlp.gate.weight", "model.layers.{n}.mlp.gate_proj.weight"),
    Row("blocks.{n}.mlp.up.weight", "model.layers.{n}.mlp.up_proj.weight"),
    Row("blocks.{n}.mlp.down.weight", "model.layers.{n}.mlp.down_proj.weight"),
    Row("final_norm.weight", "model.norm.weight"),
    Row("head.weight", "lm_head.weight"),
)  # fmt: skip

# What older files hold beside the weights: causal masks and the frequencies of the rotation. Nothing that is learned.
NOT_LEARNED = re.compile(r"(.*\.)?(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")


def rows(config: ModelConfig) -> list[Row]:
    """A row for each weight of a model, block by block; the head's only if it has its own."""
    table = GPT2 if isinstance(config, GPTConfig) else QWEN3
    found = []
    for row in table:
        if "{n}" in row.ours:
            found += [row.in_block(n) for n in range(config.n_layers)]
        elif row.ours != "head.weight" or not config.tie_embeddings:
            found.append(row)
    return found


def to_theirs(config: ModelConfig, weights: Tensors) -> Tensors:
    """Our state dict under their names and in their shapes, in float32, tied weights once."""
    found: Tensors = {}
    for row in rows(config):
        if row.ours.endswith("attn.qkv.bias") and row.ours not in weights:
            weight = weights[row.ours.replace("bias", "weight")]
            found[row.all_theirs[0]] = torch.zeros(weight.shape[0])  # their layout always has one
            continue
        whole = weights[row.ours].detach().to(torch.float32)
        parts = whole.split(qkv_rows(config)) if len(row.all_theirs) > 1 else (whole,)
        for name, part in zip(row.all_theirs, parts):
            found[name] = (part.T if row.transposed else part).contiguous()
    return found


def to_ours(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Their tensors as our state dict, in float32.

    Raises FormatError for a weight that is missing, unknown, or not finite; and for a bias where the config says that
    there is none. Shapes are the caller's to compare.
    """
    if config.n_layers > len(tensors):
        raise FormatError(f"expected weights of {config.n_layers} layers, got {len(tensors)} weights.")
    left = with_prefix(config, {name: tensor for name, tensor in tensors.items() if not NOT_LEARNED.fullmatch(name)})
    second = left.pop("lm_head.weight") if config.tie_embeddings and "lm_head.weight" in left else None
    wanted = rows(config)
    missing = [name for row in wanted for name in row.all_theirs if name not in left]
    if missing:
        raise FormatError(f"expected {len(missing)} more weights, first of them {missing[0]}, got files without.")
    found: Tensors = {}
    for row in wanted:
        parts = [left.pop(name).to(torch.float32) for name in row.all_theirs]
        if not all(bool(part.isfinite().all()) for part in parts):
            raise FormatError(f"expected finite numbers in {' and '.join(row.all_theirs)}, got others.")
        parts = [part.T if row.transposed else part for part in parts]
        found[row.ours] = (torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous()
    if left:
        raise FormatError(
            f"expected no other weights than those of {config.family}, got {', '.join(sorted(left)[:3])}.",
            "The model does more than Lightwell knows of.",
        )
    if second is not None and not torch.equal(second.to(torch.float32), found["tok_emb.weight"]):
        raise FormatError("expected lm_head.weight to equal the embedding, since config.json ties them, got another.")
    return _without_zero_biases(config, found)


def _without_zero_biases(config: ModelConfig, weights: Tensors) -> Tensors:
    if not isinstance(config, GPTConfig) or config.qkv_bias:
        return weights
    biases = [name for name in weights if name.endswith("attn.qkv.bias")]
    if any(bool(weights[name].any()) for name in biases):
        raise FormatError("expected biases of zero, since config.json says lightwell.qkv_bias = false, got others.")
    return {name: weight for name, weight in weights.items() if name not in biases}


def with_prefix(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Files of the bare model, without its head, leave out the first word of every name."""
    prefix = "transformer." if isinstance(config, GPTConfig) else "model."
    if any(name.startswith(prefix) for name in tensors):
        return tensors
    return {name if name == "lm_head.weight" else prefix + name: tensor for name, tensor in tensors.items()}
